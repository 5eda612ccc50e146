//! Bytes to messages: the dialect of JSON that the original accepts, however the bytes are cut into portions.
//!
//! A message ends when its brackets balance; no newline is needed. The decoder finds that end token by token, keeps the
//! text of one message at most and holds it against [`Limits`]; what the text says is judged by [`crate::message`].
//!
//! Where it is stricter than the original:
//! * a closing bracket of the wrong kind ends the message at once, so it cannot swallow what follows;
//! * one bad line costs one error, not one for each of its remains;
//! * after a message over a limit the rest of its line is skipped, so that data is never taken for a command.
//!
//! It leaves out: I/O, waiting, and what a request means.

use crate::message::{Refusal, Request};

/// What one message may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of all tokens of one message, blanks between them not counted.
    pub token_bytes: usize,
    /// Tokens of one message.
    pub tokens: usize,
    /// Braces and brackets open at once; at most [`Limits::DEPTH_MAX`].
    pub depth: usize,
}

impl Limits {
    /// The deepest nesting that the decoder can follow.
    pub const DEPTH_MAX: usize = 1024;
}

impl Default for Limits {
    /// The original's: 64 MiB, 2 Mi tokens, 1024 levels.
    fn default() -> Self {
        Self { token_bytes: 64 << 20, tokens: 2 << 20, depth: Self::DEPTH_MAX }
    }
}

/// What a token costs besides its text, in bytes: an object's key while it is looked for a second one, an element of a
/// list that a command takes. One of two tokens or fewer is a value.
const TOKEN_BYTES: usize = 32;

/// What a message of so many bytes and tokens costs until it is answered, at most: its text, a copy of that if texts in it have
/// to be decoded, and what becomes of its tokens.
#[must_use]
pub const fn cost_bytes(text_bytes: usize, has_escapes: bool, tokens: usize) -> usize {
    let copies = if has_escapes { 2 } else { 1 };
    text_bytes.saturating_mul(copies).saturating_add(tokens.saturating_mul(TOKEN_BYTES))
}

/// What came out of the bytes.
#[derive(Debug)]
pub enum Event {
    /// A well-formed request.
    Request(Request),
    /// Something else, to be answered with this error.
    Refused(Refusal),
}

/// Turns bytes into [`Event`]s.
#[derive(Debug, Default)]
pub struct Decoder {
    limits: Limits,
    /// Text of the tokens of the message that is being read.
    message: Vec<u8>,
    /// Where the token that is being read starts in `message`.
    token_start: usize,
    tokens: usize,
    token_bytes: usize,
    /// A text of the message has an escape, so it is copied to be decoded.
    has_escapes: bool,
    nesting: Nesting,
    state: State,
    /// The line has had its error; its remains stay without one.
    quiet: bool,
    /// A reset byte has been answered since the last message; more of them stay without an answer.
    reset_answered: bool,
}

/// Where the lexer stands.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Between,
    Text(u8),
    TextEscape(u8),
    Keyword,
    Minus,
    Zero,
    Digits,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
    /// After a lexical error: skips to the next byte at which a message can start.
    Recovery,
    /// After a limit: skips to the next line.
    SkipLine,
}

/// Which brackets are open, a bit each.
#[derive(Debug, Default)]
struct Nesting {
    depth: usize,
    braces: [u64; Limits::DEPTH_MAX / 64],
}

impl Nesting {
    fn open(&mut self, is_brace: bool) {
        let (word, bit) = (self.depth / 64, 1 << (self.depth % 64));
        if is_brace {
            self.braces[word] |= bit;
        } else {
            self.braces[word] &= !bit;
        }
        self.depth += 1;
    }

    /// Whether the bracket closed was the innermost open one.
    fn close(&mut self, is_brace: bool) -> bool {
        let Some(depth) = self.depth.checked_sub(1) else { return false };
        self.depth = depth;
        (self.braces[depth / 64] & (1 << (depth % 64)) != 0) == is_brace
    }
}

/// Bytes that drop whatever is pending: never part of UTF-8, used by clients to resynchronise.
fn is_reset(byte: u8) -> bool {
    byte >= 0xFE
}

fn ends_recovery(byte: u8) -> bool {
    matches!(byte, b'[' | b']' | b'{' | b'}' | b':' | b',') || is_reset(byte) || (byte < 0x20 && byte != b'\t')
}

/// How much of a string goes on without a byte that needs a look: a quote, a backslash, a control character, a reset.
fn plain_prefix(bytes: &[u8], quote: u8) -> usize {
    const STRIDE: usize = 32;
    let stops = |byte: u8| byte == quote || byte == b'\\' || !(0x20..0xFE).contains(&byte);
    let mut length = 0;
    for chunk in bytes.chunks_exact(STRIDE) {
        // Without a branch in the loop, so that the compiler makes vector instructions of it.
        if chunk.iter().fold(false, |found, &byte| found | stops(byte)) {
            break;
        }
        length += STRIDE;
    }
    length + bytes[length..].iter().take_while(|&&byte| !stops(byte)).count()
}

impl Decoder {
    /// A decoder with limits of its own.
    ///
    /// # Panics
    /// If the limit of depth is above [`Limits::DEPTH_MAX`].
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        assert!(limits.depth <= Limits::DEPTH_MAX, "nesting deeper than {} cannot be followed", Limits::DEPTH_MAX);
        Self { limits, ..Self::default() }
    }

    /// Bytes kept of a message that has not ended yet.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.message.len()
    }

    /// What the message that has not ended yet costs in bytes, as [`cost_bytes`] has it.
    #[must_use]
    pub fn cost_bytes(&self) -> usize {
        cost_bytes(self.message.len(), self.has_escapes, self.tokens)
    }

    /// Takes bytes from the front of `input` up to the end of a message or an error, and returns that. `None` when
    /// all bytes are taken and no message has ended.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Event> {
        while let Some(&byte) = input.first() {
            if let State::Text(quote) = self.state {
                let plain = plain_prefix(input, quote);
                if plain > 0 {
                    if self.token_bytes + plain > self.limits.token_bytes {
                        *input = &input[plain..];
                        return Some(self.over_limit("JSON token size limit exceeded"));
                    }
                    self.message.extend_from_slice(&input[..plain]);
                    self.token_bytes += plain;
                    *input = &input[plain..];
                    continue;
                }
            }
            let (step, taken) = self.step(byte);
            if taken {
                *input = &input[1..];
            }
            let event = match step {
                Step::Continue => None,
                Step::TokenEnd => self.end_token(),
                Step::Stray => self.stray(byte),
            };
            if event.is_some() {
                return event;
            }
        }
        None
    }

    /// Drops what is pending and the rest of its line, because of a cause outside of the bytes. Returns the error.
    pub fn refuse(&mut self, cause: &str) -> Event {
        self.over_limit(cause)
    }

    /// One byte. The second value tells whether it is used up: the byte after a number or a keyword is not.
    fn step(&mut self, byte: u8) -> (Step, bool) {
        let next = match (self.state, byte) {
            (State::SkipLine, b'\n') => {
                self.quiet = false;
                State::Between
            }
            (State::SkipLine, _) if is_reset(byte) => {
                self.state = State::Between;
                return (Step::Stray, true);
            }
            (State::SkipLine, _) => return (Step::Continue, true),
            (State::Recovery, _) if ends_recovery(byte) => {
                self.state = State::Between;
                return (Step::Continue, false);
            }
            (State::Recovery, _) => return (Step::Continue, true),

            (State::Between, b' ' | b'\t' | b'\r' | b'\n') => {
                if byte == b'\n' {
                    self.quiet = false;
                    self.reset_answered = false;
                }
                // Keeps `1 2` apart; all other blanks are dropped, so that they cost nothing.
                if self.message.last().is_some_and(u8::is_ascii_alphanumeric) {
                    self.message.push(b' ');
                }
                return (Step::Continue, true);
            }
            (State::Between, b'{' | b'}' | b'[' | b']' | b':' | b',') => {
                self.start_token();
                self.push(byte);
                return (Step::TokenEnd, true);
            }
            (State::Between, b'"' | b'\'') => self.start(State::Text(byte)),
            (State::Between, b'a'..=b'z') => self.start(State::Keyword),
            (State::Between, b'-') => self.start(State::Minus),
            (State::Between, b'0') => self.start(State::Zero),
            (State::Between, b'1'..=b'9') => self.start(State::Digits),

            (State::Text(quote), _) if byte == quote => {
                self.push(byte);
                return (Step::TokenEnd, true);
            }
            (State::Text(quote), b'\\') => {
                self.has_escapes = true;
                State::TextEscape(quote)
            }
            (State::Text(_), _) => return (Step::Stray, true),
            (State::TextEscape(quote), 0x20..=0xFD) => State::Text(quote),

            (State::Keyword, b'a'..=b'z') => State::Keyword,
            (State::Minus, b'0') => State::Zero,
            (State::Minus, b'1'..=b'9') | (State::Digits, b'0'..=b'9') => State::Digits,
            (State::Zero | State::Digits, b'.') => State::Point,
            (State::Point | State::Fraction, b'0'..=b'9') => State::Fraction,
            (State::Digits | State::Fraction, b'e' | b'E') => State::Exponent,
            (State::Exponent, b'+' | b'-') => State::ExponentSign,
            (State::Exponent | State::ExponentSign | State::ExponentDigits, b'0'..=b'9') => State::ExponentDigits,
            // `01` is an error of its own, not two numbers.
            (State::Zero, b'0'..=b'9') => return (Step::Stray, true),
            (State::Keyword | State::Zero | State::Digits | State::Fraction | State::ExponentDigits, _) => {
                return (Step::TokenEnd, false);
            }
            (State::Between, _) => {
                self.start_token();
                return (Step::Stray, true);
            }
            _ => return (Step::Stray, true),
        };
        if !matches!(self.state, State::SkipLine) {
            self.push(byte);
        }
        self.state = next;
        (Step::Continue, true)
    }

    fn start(&mut self, state: State) -> State {
        self.start_token();
        state
    }

    fn start_token(&mut self) {
        self.token_start = self.message.len();
    }

    fn push(&mut self, byte: u8) {
        self.message.push(byte);
        self.token_bytes += 1;
    }

    fn end_token(&mut self) -> Option<Event> {
        self.state = State::Between;
        self.tokens += 1;
        let balanced = match self.message[self.token_start] {
            opening @ (b'{' | b'[') => {
                if self.nesting.depth == self.limits.depth {
                    return Some(self.over_limit("JSON nesting depth limit exceeded"));
                }
                self.nesting.open(opening == b'{');
                true
            }
            closing @ (b'}' | b']') => self.nesting.close(closing == b'}'),
            _ => true,
        };
        if self.token_bytes > self.limits.token_bytes {
            return Some(self.over_limit("JSON token size limit exceeded"));
        }
        if self.tokens > self.limits.tokens {
            return Some(self.over_limit("JSON token count limit exceeded"));
        }
        if balanced && self.nesting.depth > 0 {
            return None;
        }
        let cost_bytes = self.cost_bytes();
        let text = std::mem::take(&mut self.message);
        self.clear();
        self.reset_answered = false;
        match Request::from_text(text, cost_bytes) {
            Ok(request) => {
                self.quiet = false;
                Some(Event::Request(request))
            }
            // Whoever sent an object gets an answer to it; only the remains of something broken stay without one.
            Err(refusal) if refusal.answers_an_object() => {
                self.quiet = false;
                Some(Event::Refused(refusal))
            }
            Err(refusal) => self.complain(refusal),
        }
    }

    /// A byte that no token can have here: `byte` has not been kept.
    fn stray(&mut self, byte: u8) -> Option<Event> {
        let token_start = self.token_start.min(self.message.len());
        let mut token = self.message.split_off(token_start);
        token.push(byte);
        self.clear();
        self.state = State::Recovery;
        if is_reset(byte) {
            self.quiet = false;
            if std::mem::replace(&mut self.reset_answered, true) {
                return None;
            }
            return Some(Event::Refused(Refusal::stray(&token)));
        }
        let event = self.complain(Refusal::stray(&token));
        if byte == b'\n' {
            self.quiet = false;
        }
        event
    }

    fn over_limit(&mut self, text: &str) -> Event {
        self.clear();
        self.state = State::SkipLine;
        self.quiet = true;
        Event::Refused(Refusal::generic(text))
    }

    fn complain(&mut self, refusal: Refusal) -> Option<Event> {
        (!std::mem::replace(&mut self.quiet, true)).then_some(Event::Refused(refusal))
    }

    fn clear(&mut self) {
        // A large buffer is given back; the next message starts small.
        self.message = Vec::new();
        self.token_start = 0;
        self.tokens = 0;
        self.token_bytes = 0;
        self.has_escapes = false;
        self.nesting.depth = 0;
        self.state = State::Between;
    }
}

enum Step {
    Continue,
    TokenEnd,
    Stray,
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
