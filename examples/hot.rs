//! Which functions does `convene run` ever call? Writes hot.ld, by which the linker puts those together, apart from all others.
//!
//! The kernel maps a program's file by windows of 64 KiB and more around what is called (`fault_around_bytes`), so of functions that
//! lie wherever their crates are, nearly every page is resident: 5.3 MB of 5.7. Together they need 2.6 MB.
//!
//! `hot MAP CALLGRIND…` reads a linker's map and what callgrind saw, and prints the script. To make them: link as `make static`
//! does, but with `CARGO_PROFILE_RELEASE_STRIP=none`, without hot.ld and with `-Wl,-Map=MAP`; then run that binary in a server's
//! Pod, in place of `convene run -- …`, under `callgrind --demangle=no`, from an empty volume to its TERM, and again with data.
//! What callgrind cannot see stands in [`HEAD`] and [`FOOT`]: `perf record -e minor-faults -c 1 -d` of the same run, and `perf script -F ip,addr`, name
//! each function outside of `.text.run` that cost a window.
//!
//! It is time for that when `make bench-cluster` says that memory is missed, as it may after many other changes: a name that is
//! not there any more costs nothing, and one that is missing costs a window.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

/// What a line of the script may take in of functions that are never called, in bytes: more bytes, fewer lines.
const LINE: u64 = 200;

const HEAD: &str = "\
/* What a server's `convene run` calls from its start to its end, and so keeps resident. Written by examples/hot.rs, which says how.
   The hash at a name's end, which changes with each compiler, is left out. */
SECTIONS
{
  .text.run : {
    /* Rarely called, and small; callgrind's processor is an older one, so of memcpy's variants it saw others; and it hides the vDSO. */
    *(.text.unlikely.*)
    *libc.a:*(.text.avx .text.avx512 .text.evex .text.evex512 .text.sse4.?)
    *libc.a:dl-object.o(.text)
    *libc.a:strstr.o(.text)
    *libc.a:strstr-avx512.o(.text)
    *(.text.constant_time_conditional_*)
    /* Of newer processors than callgrind's. */
    *libring-*.rlib:*adx*.o(.text .text.*)
    *libring-*.rlib:*aes-gcm-avx2*.o(.text)
    /* It hides the vDSO, and what a child does before it becomes another program, in our memory. */
    *libc.a:dl-setup_hash.o(.text)
    *libc.a:execvpe.o(.text)
    *libc.a:execve.o(.text)
    *libc.a:libc_sigaction.o(.text)
    *libc.a:sigaction.o(.text)
    *libc.a:setpgid.o(.text)
    *libc.a:sigprocmask.o(.text)
    *libc.a:alloca_cutoff.o(.text)
    /* Small, and called at moments that differ from run to run. */
    *(.text.*12tokio_rustls*)
    *(.text.*tokio_rustls..*)
    *(.text.*12futures_util*)
    *(.text.*futures_util..*)
    *(.text.*futures_channel*)
    *(.text._ZN5tokio*)
    *(.text._ZN9kube_core7request*)
    *(.text._ZN7convene6survey9strangers*)
    *(.text._ZN7convene3run*)
    *(.text._ZN7convene4dial*)
    *(.text._ZN4jiff3fmt8temporal6parser*)
    *(.text._ZN4jiff4util5parse*)
    *(.text._ZN4jiff3fmt4util*)
    *(.text._ZN4jiff3fmt6offset*)
    *(.text._ZN4jiff5civil4time*)
    *(.text._RNvM*_NtNtCs*_4core3net7ip_addr*)
    *(.text.*parking_lot..raw_mutex*)
    *(.text.*convene..api*)
    *(.text.*10serde_json5value*)
    *(.text.*convene..run*)
    *(.text._ZN7convene4stop5cause*)
    *(.text._ZN7convene3api6consul*)
    *(.text._ZN4core4sync6atomic*)
    *(.text._RNvXs*_NtNtCs*_3std2io5error*)
    *libc.a:xpg-strerror.o(.text)
    *libc.a:dc?gettext.o(.text)
    *libc.a:dcgettext.o(.text)
    *libc.a:localename.o(.text)
    *libc.a:tsearch.o(.text)
    *(.text._RNvXs*_NtCs*_4core4time*)
    *(.text._RNvXs*_NtCs*_5alloc6string*)
    *(.text._ZN15form_urlencoded*)
    *(.text._RNvMNtCs*_5alloc5alloc*)
    *(.text._ZN4http*)
    *(.text.*hyper_util*)
    *(.text.*4moka*)
    *(.text.*moka..*)
    /* Part of their callers in some builds, by themselves in others. */
    *(.text._ZN16hickory_resolver8resolver*)
    *(.text._ZN5alloc5slice*)
    *(.text._ZN4core3ptr??drop_in_place$LT$alloc..*)
";

/// What the start runs, how any of libc's functions for strings are called, and what asks DNS, in sections of their own.
const FOOT: &str = "    *crt1.o(.text)
    *crtbegin*.o(.text)
  }
  .init : { KEEP(*(.init)) }
  .iplt : { *(.iplt) }
  .text.dns : {
    /* Of who asks DNS alone, by itself: where nobody does it is not resident. */
    *(.text.*hickory_*)
    *(.text._ZN7convene6survey3dns*)
    *(.text._ZN7convene8settings4read*)
    *(.text._ZN8smallvec*)
    *(.text.*hashbrown..Equivalent*)
    *(.text._RINvNtCs*_4core3ptr13drop_in_placeNtNtNtCs*_3std2io5error5Error*)
    *(.text.*core..iter..adapters..zip*)
    *(.text._RNvMs*_9hashbrown3raw*)
    *(.text.*prefix_trie*)
    *(.text.*9rand_core*)
    *(.text.*rand_core..*)
    *(.text.*tinyvec*)
    *libc.a:sendto.o(.text)
    *libc.a:recvfrom.o(.text)
    *libm*.a:*_exp*.o(.text .text.*)
    *libm*.a:s_round*.o(.text .text.*)
  }
}
INSERT BEFORE .text;
";

fn main() -> ExitCode {
    let mut paths = std::env::args().skip(1);
    let read = |path: String| std::fs::read_to_string(&path).map_err(|why| format!("could not read {path}: {why}"));
    let (Some(map), calls) = (paths.next().map(read), paths.map(read).collect::<Result<Vec<_>, _>>()) else {
        eprintln!(
            "hot: its arguments are a linker's map and what callgrind wrote; the head of examples/hot.rs says how"
        );
        return ExitCode::FAILURE;
    };
    match map.and_then(|map| Ok((map, calls?))) {
        Ok((map, calls)) => {
            print!("{HEAD}{}{FOOT}", lines(&map, &called(&calls)));
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("hot: {why}");
            ExitCode::FAILURE
        }
    }
}

/// The functions that callgrind saw: `fn=(7) name`, with `'2` behind a recursion.
fn called(files: &[String]) -> BTreeSet<&str> {
    let names = files.iter().flat_map(|file| file.lines()).filter_map(|line| {
        let (_, name) = line.strip_prefix("fn=(").or_else(|| line.strip_prefix("cfn=("))?.split_once(") ")?;
        Some(name.split('\'').next().unwrap_or(name))
    });
    names.collect()
}

/// A function's name in its section's, and how many bytes of that name are called and never called.
#[derive(Default)]
struct Bytes {
    hot: u64,
    cold: u64,
}

/// The lines between [`HEAD`] and [`FOOT`].
fn lines(map: &str, called: &BTreeSet<&str>) -> String {
    let mut functions: BTreeMap<String, Bytes> = BTreeMap::new();
    let mut objects = BTreeSet::new();
    // Of an object that has all its functions in one section, as the C library's have.
    let mut object = None;
    for line in map.lines() {
        let mut words = line.split_whitespace().skip(2);
        let (Some(size), Some(_), Some(what), None) = (words.next(), words.next(), words.next(), words.next()) else {
            object = None;
            continue;
        };
        let Some((file, section)) = what.strip_suffix(')').and_then(|what| what.rsplit_once(":(")) else {
            if called.contains(what) {
                objects.extend(object.clone());
            }
            continue;
        };
        object = None;
        let Some(name) = section.strip_prefix(".text") else { continue };
        match name
            .strip_prefix('.')
            .filter(|name| name.starts_with("_ZN") || name.starts_with("_R") || called.contains(name))
        {
            Some(name) => {
                let bytes = functions.entry(unhashed(name)).or_default();
                let size = u64::from_str_radix(size, 16).unwrap_or(0);
                *(if called.contains(name) { &mut bytes.hot } else { &mut bytes.cold }) += size;
            }
            None if name.is_empty() => object = pattern(file),
            None => {}
        }
    }
    let functions: Vec<(&str, &Bytes)> = functions.iter().map(|(name, bytes)| (name.as_str(), bytes)).collect();
    let functions = cover(&functions, 0).1.into_iter().map(|prefix| match prefix.split_once('#') {
        // An impl's name begins with its length.
        Some((before, after)) => format!("    *(.text.{before}??{after}* .text.{before}???{after}*)\n"),
        None => format!("    *(.text.{prefix}*)\n"),
    });
    objects.into_iter().map(|object| format!("    {object}(.text)\n")).chain(functions).collect()
}

/// A mangled name without what changes from build to build: the hash at its end, or the number of a copy of the standard library's
/// (`.2843`); with `#` for the length of an impl's name.
fn unhashed(name: &str) -> String {
    let copy = |(path, end): &(&str, &str)| path.starts_with("_R") && end.bytes().all(|byte| byte.is_ascii_digit());
    let name = name.rsplit_once('.').filter(copy).map_or(name, |(path, _)| path);
    let name = name.rsplit_once("17h").filter(|_| name.starts_with("_ZN")).map_or(name, |(path, _)| path);
    match name.strip_prefix("_ZN").map(|rest| rest.trim_start_matches(|digit: char| digit.is_ascii_digit())) {
        Some(rest) if rest.starts_with("_$") => format!("_ZN#{rest}"),
        _ => name.to_owned(),
    }
}

/// `…/libc.a(malloc.o)` as a linker script names it, without the hashes that cargo puts into a file's name.
fn pattern(file: &str) -> Option<String> {
    let (archive, member) = file.strip_suffix(')')?.rsplit_once('(')?;
    let archive = archive.rsplit('/').next()?;
    let Some(archive) = archive.strip_suffix(".rlib") else { return Some(format!("*{archive}:{member}")) };
    Some(format!("*{}-*.rlib:*-{}", archive.split_once('-')?.0, member.split_once('-')?.1))
}

/// The fewest prefixes that cover all that is called of `functions`, which have their first `from` bytes in common, and what they
/// cost: [`LINE`] each, and the bytes that are never called.
fn cover<'a>(functions: &[(&'a str, &Bytes)], from: usize) -> (u64, Vec<&'a str>) {
    if functions.iter().all(|(_, bytes)| bytes.hot == 0) {
        return (0, Vec::new());
    }
    let (Some((first, _)), Some((last, _))) = (functions.first(), functions.last()) else { return (0, Vec::new()) };
    let whole = LINE + functions.iter().map(|(_, bytes)| bytes.cold).sum::<u64>();
    let common = first.bytes().zip(last.bytes()).take_while(|(a, b)| a == b).count();
    let parts = functions.chunk_by(|(a, _), (b, _)| a.as_bytes().get(common) == b.as_bytes().get(common));
    let (cost, split) = if functions.len() == 1 {
        (u64::MAX, Vec::new())
    } else {
        parts.fold((0, Vec::new()), |(cost, mut all), part| {
            let (more, prefixes) = cover(part, common + 1);
            all.extend(prefixes);
            (cost + more, all)
        })
    };
    if from > 0 && whole <= cost { (whole, vec![first.get(..from).unwrap_or(first)]) } else { (cost, split) }
}
