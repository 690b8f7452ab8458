//! What does the kernel say of a process? Takes the text of a `/proc/PID/stat`, gives one of its fields.

use std::str::FromStr;

/// A field by its number in proc_pid_stat(5), from 3 on. `None` where there is none, or another kind of value.
pub fn field<T: FromStr>(stat: &[u8], number: usize) -> Option<T> {
    // The second one is the name in parentheses, which may hold anything, so count from the last one.
    let end_of_name = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end_of_name + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}
