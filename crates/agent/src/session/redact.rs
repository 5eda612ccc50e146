//! A request as the log shows it: no secrets, no payloads.

use qga_protocol::message::clip;
use qga_protocol::value::{Kind, Value};

use super::Asked;

/// Arguments shown of one request.
const ARGUMENTS_SHOWN: usize = 20;
/// Bytes of a value that are shown; of a longer one its length is.
const VALUE_BYTES_SHOWN: usize = 80;

/// Shows a request on one line. Of a command that is not known, no value is shown: any of them may be a secret.
pub struct Shown<'a>(pub &'a Asked);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Asked { request, entry } = self.0;
        write!(f, "{{\"execute\":\"{}\",\"arguments\":{{", clip(&request.name()))?;
        for (index, (name, value)) in request.argument_values().members().take(ARGUMENTS_SHOWN).enumerate() {
            let separator = if index > 0 { "," } else { "" };
            let secret = entry.is_none_or(|entry| entry.info.rules.secret.contains(&&*name));
            let text = String::from_utf8_lossy(value.text());
            write!(f, "{separator}\"{}\":", clip(&name))?;
            if secret || text.len() > VALUE_BYTES_SHOWN {
                write!(f, "<{} of {} bytes>", noun(value), text.len())?;
            } else {
                f.write_str(&text)?;
            }
        }
        f.write_str("}}")
    }
}

fn noun(value: Value<'_>) -> &'static str {
    match value.kind() {
        Kind::Text => "text",
        Kind::List => "list",
        Kind::Object => "object",
        Kind::Null | Kind::Boolean | Kind::Number => "value",
    }
}
