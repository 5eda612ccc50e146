//! Compares a JSON value with a pattern: a value in which some strings stand for more than themselves.
//!
//! | string in the pattern | matches |
//! |---|---|
//! | `"<integer>"`, `"<string>"`, `"<any>"` | a value of this kind |
//! | `"<same>"` | anything, but the peer must have answered the same |
//! | `"b64:TEXT"` | the base64 form of the text |
//! | `"$name"` | the value of the variable; if it has none yet, a number or string, which it then gets |
//!
//! Members must be exactly those of the pattern, in any order: an additional one can break clients.

use serde_json::Value;

use crate::escape::{Variables, to_text};
use crate::tally::Failure;

/// Tells why the value does not match, binds variables, and returns the value with its changeable parts masked, for a
/// comparison with another agent's.
pub fn matches(pattern: &Value, value: &Value, variables: &mut Variables) -> Result<Value, Failure> {
    match (pattern, value) {
        (Value::String(text), value) => string_matches(text, value, variables),
        (Value::Object(expected), Value::Object(found)) => {
            if let Some(name) = expected.keys().find(|name| !found.contains_key(*name)) {
                return Err(format!("member `{name}` is missing"));
            }
            if let Some(name) = found.keys().find(|name| !expected.contains_key(*name)) {
                return Err(format!("member `{name}` is too many"));
            }
            let masked: Result<_, Failure> = expected
                .iter()
                .map(|(name, pattern)| {
                    let masked = matches(pattern, &found[name], variables).map_err(|why| format!("{name}: {why}"))?;
                    Ok((name.clone(), masked))
                })
                .collect();
            masked.map(Value::Object)
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            let pairs = expected.iter().zip(found).enumerate();
            let masked: Result<_, Failure> = pairs
                .map(|(index, (pattern, value))| {
                    matches(pattern, value, variables).map_err(|why| format!("[{index}]: {why}"))
                })
                .collect();
            masked.map(Value::Array)
        }
        (Value::Number(expected), Value::Number(found)) if expected.as_f64() == found.as_f64() => Ok(pattern.clone()),
        (expected, found) if expected == found => Ok(value.clone()),
        (expected, found) => Err(format!("expected {}, found {}", shorten(expected), shorten(found))),
    }
}

fn string_matches(text: &str, value: &Value, variables: &mut Variables) -> Result<Value, Failure> {
    let kind_fits = match text {
        "<integer>" => Some(value.is_i64() || value.is_u64()),
        "<string>" => Some(value.is_string()),
        "<any>" => Some(true),
        "<same>" => return Ok(value.clone()),
        _ => None,
    };
    match kind_fits {
        Some(true) => return Ok(Value::from(text)),
        Some(false) => return Err(format!("expected {text}, found {}", shorten(value))),
        None => {}
    }
    if let Some(name) = text.strip_prefix('$').filter(|name| !variables.contains_key(*name)) {
        let text_of_value = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            other => return Err(format!("no number or string for ${name}: {}", shorten(other))),
        };
        variables.insert(name.to_owned(), text_of_value);
        return Ok(Value::from(text));
    }
    let expanded = to_text(text, variables);
    let expected = match expanded.strip_prefix("b64:") {
        Some(plain) => base64_simd::STANDARD.encode_to_string(plain.as_bytes()),
        None => expanded,
    };
    let is_variable = text.starts_with('$');
    let equal = match value {
        Value::String(found) => *found == expected,
        Value::Number(found) if is_variable => found.to_string() == expected,
        _ => false,
    };
    if equal {
        Ok(if is_variable { Value::from(text) } else { value.clone() })
    } else {
        Err(format!("expected {}, found {}", shorten(&Value::from(expected)), shorten(value)))
    }
}

/// A value's text, cut where nobody reads on.
pub fn shorten(value: &Value) -> String {
    shorten_text(&value.to_string())
}

/// A text, cut where nobody reads on.
pub fn shorten_text(text: &str) -> String {
    const LONGEST_CHARACTERS: usize = 300;
    let count = text.chars().count();
    if count <= LONGEST_CHARACTERS {
        return text.to_owned();
    }
    let start: String = text.chars().take(LONGEST_CHARACTERS).collect();
    format!("{start}... ({count} characters)")
}
