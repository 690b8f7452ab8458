//! What does one field of an object say? Objects are raw JSON as the API answers them, so what is not there is nothing.

use serde_json::Value;

/// All containers of a Pod's specification, init containers first.
pub fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    list(spec, "/initContainers").chain(list(spec, "/containers"))
}

/// The words of a container's command line, as far as the manifest has it.
pub fn words(container: &Value) -> impl Iterator<Item = &str> {
    list(container, "/command").chain(list(container, "/args")).filter_map(Value::as_str)
}

/// Whether a container runs convene, as its entrypoint or from its own image.
pub fn is_convene(container: &Value) -> bool {
    image_name(container) == "convene" || words(container).any(|word| word.ends_with("/convene"))
}

/// An image's name without its registry, folder, tag and digest.
pub(super) fn image_name(container: &Value) -> &str {
    let name = text(container, "/image").rsplit('/').next().unwrap_or_default();
    name.split([':', '@']).next().unwrap_or_default()
}

/// What a flag says among a container's words, with one dash or two, and with its value in the same word or the next.
pub fn flag_of<'v>(container: &'v Value, flag: &str) -> Option<&'v str> {
    let mut words = words(container);
    while let Some(word) = words.next() {
        let Some(bare) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else { continue };
        match bare.strip_prefix(flag) {
            Some("") => return words.next(),
            Some(rest) if rest.starts_with('=') => return rest.strip_prefix('='),
            _ => {}
        }
    }
    None
}

/// The text at a place, or none.
pub fn text<'v>(value: &'v Value, place: &str) -> &'v str {
    value.pointer(place).and_then(Value::as_str).unwrap_or_default()
}

/// The whole number at a place.
pub fn number(value: &Value, place: &str) -> Option<u64> {
    value.pointer(place)?.as_u64()
}

/// The values of the list at a place.
pub fn list<'v>(value: &'v Value, place: &str) -> impl Iterator<Item = &'v Value> + use<'v> {
    value.pointer(place).and_then(Value::as_array).into_iter().flatten()
}
