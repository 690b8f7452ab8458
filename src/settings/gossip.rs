//! Will Consul take the gossip key that its agent is given? Takes what CMD says, or a file that `init` is told to check; gives
//! [`GossipKey`].
//!
//! It is exactly as strict as Consul: what Consul takes is taken here, and what Consul refuses is refused with the mistake
//! behind it and its mend. The length is told and not judged, because Consul ignores a key's length where it has a keyring file
//! ([`crate::record::keyring`]). Never shows a key, nor a part of one. Fails with [`SettingsError::GossipKey`].

use super::command::{AgentCommand, Facts};
use super::http::Secret;
use super::read::SettingsError;
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use std::ffi::OsString;
use std::fmt;
use std::path::Path;

/// The lengths of a gossip key in bytes: those of AES-128, -192 and -256 (memberlist, `ValidateKey`).
const LENGTHS: [usize; 3] = [16, 24, 32];
/// More than a key in any wrapping; a limit, so that a wrong path cannot fill the memory.
const LARGEST_FILE: u64 = 64 * 1024;

/// A gossip key of the right form.
#[derive(Clone, PartialEq, Eq)]
pub struct GossipKey {
    /// Where it is given.
    pub place: String,
    /// What base64 gives.
    bytes: Vec<u8>,
    /// Why its length is wrong.
    wrong_length: Option<Mistake>,
    /// Whether Consul keeps its keys in a file on the volume, and prefers those.
    pub keeps_keyring: bool,
}

/// What is wrong with a gossip key. Each text ends with its mend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// Nothing, or line ends only.
    #[error("it is empty: give the output of `consul keygen`")]
    Empty,
    /// A key that was encoded again, as a Secret's `data` is made of what is base64 already.
    #[error(
        "it was encoded twice: give the key as `consul keygen` prints it; of a Secret put it under stringData, since data is encoded once more"
    )]
    Twice,
    /// Spaces or tabs. Line ends are no mistake, as Go's decoder skips them.
    #[error("there is a space or a tab at its beginning or its end: take it away")]
    Blank,
    /// Quotes that belong to a shell or to YAML.
    #[error("it has quotes around it: take them away")]
    Quoted,
    /// `$(NAME)`, `${NAME}` or `{{ … }}`.
    #[error(
        "it is a placeholder that nobody has filled: a $(NAME) that is left means that the Pod lacks that variable"
    )]
    Placeholder,
    /// The hexadecimal form.
    #[error(
        "it is hexadecimal: give base64 of the same bytes (`xxd -r -p | base64`), or a new key from `consul keygen`"
    )]
    Hexadecimal,
    /// `-` and `_` in the place of `+` and `/`.
    #[error("it is URL-safe base64: write + for - and / for _")]
    UrlSafe,
    /// Without the `=` at the end.
    #[error("the = at its end is missing: base64 is a multiple of four characters long")]
    Unpadded,
    /// Anything else.
    #[error("it is not base64: give the output of `consul keygen`")]
    NotBase64,
    /// Base64 of something else.
    #[error("it has {0} bytes: `consul keygen` makes one of 32")]
    Length(usize),
}

// === impl GossipKey ===

/// Without the key.
impl fmt::Debug for GossipKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, bytes: _, wrong_length, keeps_keyring } = self;
        let mut out = f.debug_struct("GossipKey");
        out.field("place", place).field("wrong_length", wrong_length).field("keeps_keyring", keeps_keyring);
        out.finish_non_exhaustive()
    }
}

impl GossipKey {
    /// The key that CMD and its files give; `None` when they give none, or an empty one, which Consul takes for none.
    ///
    /// # Errors
    /// [`SettingsError::GossipKey`].
    pub fn said(facts: &Facts) -> Result<Option<Self>, SettingsError> {
        let Some(said) = facts.encrypt.as_ref().filter(|said| !said.value.reveal().is_empty()) else { return Ok(None) };
        let keeps_keyring = !facts.disable_keyring_file.as_ref().is_some_and(|said| said.value);
        Self::read(said.place.to_string(), &said.value, keeps_keyring).map(Some)
    }

    /// The key in a file that an agent is to get: a configuration of Consul's (`.json`, `.hcl`, a folder of them), or the key
    /// alone.
    ///
    /// # Errors
    /// [`SettingsError::GossipKey`]; [`SettingsError::Conflict`] when the file cannot be opened or holds no key,
    /// [`SettingsError::Command`] when Consul would refuse it.
    pub fn in_file(flag: &str, path: &str) -> Result<Self, SettingsError> {
        let unusable = |why: String| SettingsError::Conflict {
            what: format!("{flag} is {path}, which {why}"),
            mend: "give the file with the gossip key: the key alone, or Consul's configuration with encrypt in it"
                .to_owned(),
        };
        let file = Path::new(path);
        if !file.is_dir() && !["json", "hcl"].iter().any(|ending| file.extension().is_some_and(|end| end == *ending)) {
            let text = key_alone(file).map_err(|error| unusable(format!("could not be read: {error}")))?;
            return Self::read(path.to_owned(), &Secret::new(text), true);
        }
        // As its agent will read it.
        let words = ["consul", "agent", "-config-file", path].map(OsString::from).to_vec();
        let command = AgentCommand::read(words, |_| None).map_err(|error| SettingsError::Command(error.to_string()))?;
        let said = command.as_ref().map(|command| Self::said(command.facts())).transpose()?.flatten();
        said.ok_or_else(|| {
            let warnings = command.iter().flat_map(AgentCommand::warnings).collect::<Vec<_>>().join("; ");
            unusable(if warnings.is_empty() {
                "has no encrypt".to_owned()
            } else {
                format!("gives no key: {warnings}")
            })
        })
    }

    fn read(place: String, text: &Secret, keeps_keyring: bool) -> Result<Self, SettingsError> {
        let text = text.reveal();
        let Some(bytes) = decode(text) else {
            return Err(SettingsError::GossipKey { place, mistake: undecodable(text) });
        };
        let wrong_length = (!LENGTHS.contains(&bytes.len())).then(|| wrong_length(text, &bytes));
        Ok(Self { place, bytes, wrong_length, keeps_keyring })
    }

    /// Refuses a key of a wrong length, as Consul does where no keyring file takes the key's place.
    ///
    /// # Errors
    /// [`SettingsError::GossipKey`].
    pub fn of_right_length(&self) -> Result<(), SettingsError> {
        self.wrong_length.map_or(Ok(()), |mistake| Err(SettingsError::GossipKey { place: self.place.clone(), mistake }))
    }

    /// Whether an entry of a keyring is this key.
    pub fn is(&self, entry: &Secret) -> bool {
        decode(entry.reveal()).as_ref() == Some(&self.bytes)
    }
}

fn key_alone(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(LARGEST_FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// As Go's `base64.StdEncoding` reads: the `=` at the end must be there, and bits that are left over count for nothing
/// (<https://pkg.go.dev/encoding/base64#Encoding.DecodeString>).
const GO: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// What base64 stands for. Go skips line ends.
fn decode(text: &str) -> Option<Vec<u8>> {
    GO.decode(text.replace(['\r', '\n'], "")).ok()
}

fn is_key(text: &str) -> bool {
    decode(text).is_some_and(|bytes| LENGTHS.contains(&bytes.len()))
}

fn is_hexadecimal(text: &str) -> bool {
    LENGTHS.contains(&(text.len() / 2))
        && text.len().is_multiple_of(2)
        && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What a person probably did who gave a text that is not base64.
fn undecodable(text: &str) -> Mistake {
    let bare = text.trim();
    let unquoted = bare.trim_matches(['"', '\'']);
    let standard = bare.replace('-', "+").replace('_', "/");
    let padded = format!("{standard}{}", "=".repeat((4 - standard.len() % 4) % 4));
    if ["$(", "${", "{{"].iter().any(|opening| bare.contains(opening)) {
        Mistake::Placeholder
    } else if is_key(bare) {
        Mistake::Blank
    } else if unquoted != bare && is_key(unquoted) {
        Mistake::Quoted
    } else if is_hexadecimal(unquoted) {
        Mistake::Hexadecimal
    } else if standard != bare && is_key(&padded) {
        Mistake::UrlSafe
    } else if is_key(&padded) {
        Mistake::Unpadded
    } else {
        Mistake::NotBase64
    }
}

/// What a person probably did whose base64 stands for something else.
fn wrong_length(text: &str, bytes: &[u8]) -> Mistake {
    let inner = std::str::from_utf8(bytes).map(str::trim);
    if bytes.is_empty() {
        Mistake::Empty
    } else if inner.is_ok_and(is_key) {
        Mistake::Twice
    } else if is_hexadecimal(text.trim()) || inner.is_ok_and(is_hexadecimal) {
        Mistake::Hexadecimal
    } else {
        Mistake::Length(bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 32, 24 and 16 bytes of 0xfb, whose base64 has both characters that URLs spell otherwise.
    const KEY: &str = "+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=";
    const KEY_24: &str = "+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7";
    const KEY_16: &str = "+/v7+/v7+/v7+/v7+/v7+w==";

    fn read(text: &str) -> Result<GossipKey, SettingsError> {
        GossipKey::read("encrypt in /f".to_owned(), &Secret::new(text), true)
    }

    #[track_caller]
    fn is_refused(text: &str, wanted: Mistake) {
        let refused = read(text).and_then(|key| key.of_right_length()).unwrap_err();
        assert_eq!(
            refused,
            SettingsError::GossipKey { place: "encrypt in /f".to_owned(), mistake: wanted },
            "{text:?}"
        );
        let line = refused.to_string();
        assert!(line.starts_with("encrypt in /f is no gossip key, which is base64 of 16, 24 or 32 bytes: "), "{line}");
        assert!(text.trim().len() < 4 || !line.contains(text.trim()) && !line.contains('\n'), "{line}");
    }

    #[test]
    fn keys_of_all_three_lengths_are_taken_and_so_are_line_ends() {
        for key in [KEY, KEY_24, KEY_16] {
            for text in [key.to_owned(), format!("{key}\n"), format!("\r\n{}\n{}", &key[..7], &key[7..])] {
                let read = read(&text).unwrap();
                assert_eq!(read.of_right_length(), Ok(()), "{text:?}");
                assert!(read.is(&Secret::new(key)) && !read.is(&Secret::new("")));
            }
        }
    }

    #[test]
    fn each_mistake_is_named() {
        let twice = "Ky92NysvdjcrL3Y3Ky92NysvdjcrL3Y3Ky92NysvdjcrL3Y3Ky92Nysvcz0=";
        for (text, wanted) in [
            ("\n", Mistake::Empty),
            (twice, Mistake::Twice),
            // With the line end of `echo` in between.
            ("Ky92NysvdjcrL3Y3Ky92NysvdjcrL3Y3Ky92NysvdjcrL3Y3Ky92Nysvcz0K", Mistake::Twice),
            (&format!("{KEY} "), Mistake::Blank),
            (&format!("\t{KEY_16}\n"), Mistake::Blank),
            (&format!("\"{KEY}\""), Mistake::Quoted),
            (&format!("'{KEY_24}'\n"), Mistake::Quoted),
            ("$(GOSSIP_KEY)", Mistake::Placeholder),
            ("{{ .Values.key }}", Mistake::Placeholder),
            (&"fb".repeat(32), Mistake::Hexadecimal),
            (&"FB".repeat(24), Mistake::Hexadecimal),
            (&format!("\"{}\"", "fb".repeat(32)), Mistake::Hexadecimal),
            (&KEY.replace('+', "-").replace('/', "_"), Mistake::UrlSafe),
            (KEY_16.replace('+', "-").replace('/', "_").trim_end_matches('='), Mistake::UrlSafe),
            (KEY.trim_end_matches('='), Mistake::Unpadded),
            ("a gossip key", Mistake::NotBase64),
            ("====", Mistake::NotBase64),
            ("c2VjcmV0", Mistake::Length(6)),
            (&KEY_24.repeat(2), Mistake::Length(48)),
        ] {
            is_refused(text, wanted);
        }
    }

    #[test]
    fn a_key_is_never_shown() {
        let key = read(KEY).unwrap();
        let shown = format!("{key:?}");
        assert!(shown.contains("encrypt in /f") && !shown.contains("251") && !shown.contains(&KEY[..4]), "{shown}");
    }

    #[test]
    fn a_file_may_hold_the_key_alone_or_consuls_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        for path in [
            file("key", &format!("{KEY}\n")),
            file("a.json", &format!("{{\"encrypt\": \"{KEY}\"}}")),
            file("a.hcl", &format!("encrypt = \"{KEY}\"")),
            folder.path().to_str().unwrap().to_owned(),
        ] {
            let key = GossipKey::in_file("--gossip-key-file", &path).unwrap();
            assert!(key.is(&Secret::new(KEY)) && key.place.contains(&path), "{key:?}");
        }
        for (path, why) in [
            (file("empty.json", ""), "has no encrypt"),
            (file("none.json", "{\"encrypt\": \"\"}"), "encrypt in "),
            (folder.path().join("gone").to_str().unwrap().to_owned(), "could not be read: No such file"),
        ] {
            let line = GossipKey::in_file("--gossip-key-file", &path).unwrap_err().to_string();
            assert!(line.starts_with(&format!("--gossip-key-file is {path}, which ")) && line.contains(why), "{line}");
        }
        for (path, why) in [
            (
                file("line.json", &format!("{{\"encrypt\":\n \"{KEY}\n\"}}")),
                ", line 2, as JSON: a string has a line end in it",
            ),
            (file("number.json", "{\"encrypt\": 1}"), ": \"…\" is not a text"),
        ] {
            let line = GossipKey::in_file("--gossip-key-file", &path).unwrap_err().to_string();
            assert!(line.contains(&format!("{path}{why}")) && !line.contains(&KEY[..8]), "{line}");
        }
    }

    proptest! {
        #[test]
        fn invariant_any_text_is_read_or_refused_and_no_message_holds_it(text in "[A-Za-z0-9+/=_\\- \n]{8,80}") {
            match read(&text) {
                Ok(key) => prop_assert_eq!(key.of_right_length().is_ok(), LENGTHS.contains(&key.bytes.len())),
                Err(error) => prop_assert!(!error.to_string().contains(&text)),
            }
        }
    }
}
