//! Arguments to commands, and what is wrong with them in the original's wording.
//!
//! A serde deserializer over [`Value`] that follows the original's order: declared members in the schema's order, each
//! first for being there, then for its type; what is left over last. So the first error reported is the same one.

use std::borrow::Cow;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
    VariantAccess, Visitor,
};
use serde::{Deserialize, forward_to_deserialize_any};

use crate::message::clip;
use crate::value::{Kind, Value};

/// What is wrong with arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The whole text.
    Text(String),
    /// Of another type than this; the parameter's name is still to come.
    Expected(String),
    /// A word that an enumeration does not have; the parameter's name is still to come.
    Word(String),
}

impl Error {
    fn at(self, path: &Path<'_>) -> Self {
        match self {
            Self::Expected(expected) => {
                Self::Text(format!("Invalid parameter type for '{path}', expected: {expected}"))
            }
            Self::Word(word) => Self::Text(format!("Parameter '{path}' does not accept value '{}'", clip(&word))),
            complete @ Self::Text(_) => complete,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Expected(expected) => write!(f, "Invalid parameter type, expected: {expected}"),
            Self::Word(word) => write!(f, "does not accept value '{word}'"),
        }
    }
}

impl std::error::Error for Error {}

impl serde::de::Error for Error {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self::Text(text.to_string())
    }

    fn invalid_type(_found: Unexpected<'_>, expected: &dyn serde::de::Expected) -> Self {
        Self::Expected(expected.to_string())
    }

    fn unknown_variant(word: &str, _known: &'static [&'static str]) -> Self {
        Self::Word(word.to_owned())
    }
}

/// Parses a command from the value of `arguments`.
///
/// # Errors
/// The first thing that is wrong with them.
pub fn parse<'a, C: Deserialize<'a>>(arguments: Value<'a>) -> Result<C, Error> {
    C::deserialize(Parameter { value: arguments, path: &Path::Root })
}

/// Where a value stands, for errors: `arg[1]`, `vcpus[0].online`.
enum Path<'a> {
    Root,
    Member(&'a Path<'a>, &'a str),
    Element(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Member(Path::Root, name) => f.write_str(name),
            Path::Member(parent, name) => write!(f, "{parent}.{name}"),
            Path::Element(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// A value with its place.
struct Parameter<'de, 'p> {
    value: Value<'de>,
    path: &'p Path<'p>,
}

impl<'de> Parameter<'de, '_> {
    fn expected(&self, what: &str) -> Error {
        Error::Expected(what.to_owned()).at(self.path)
    }

    fn text(&self) -> Result<Cow<'de, str>, Error> {
        self.value.as_text().ok_or_else(|| self.expected("string"))
    }
}

impl<'de> Deserializer<'de> for Parameter<'de, '_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let found: Result<_, Error> = match self.value.kind() {
            Kind::Null => visitor.visit_unit(),
            Kind::Boolean => visitor.visit_bool(self.value.as_bool().unwrap_or_default()),
            Kind::Number => match (self.value.as_i64(), self.value.as_u64()) {
                (Some(number), _) => visitor.visit_i64(number),
                (None, Some(number)) => visitor.visit_u64(number),
                _ => visitor.visit_f64(self.value.as_f64().unwrap_or_default()),
            },
            Kind::Text => match self.text()? {
                Cow::Borrowed(text) => visitor.visit_borrowed_str(text),
                Cow::Owned(text) => visitor.visit_string(text),
            },
            Kind::List => return self.deserialize_seq(visitor),
            Kind::Object => return self.deserialize_map(visitor),
        };
        found.map_err(|error| error.at(self.path))
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_i64(self.value.as_i64().ok_or_else(|| self.expected("integer"))?)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        // A negative number is taken modulo 2^64, as the original does.
        let number = self.value.as_u64().or_else(|| self.value.as_i64().map(|number| number as u64));
        visitor.visit_u64(number.ok_or_else(|| Error::Text(format!("Parameter '{}' expects uint64", self.path)))?)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_f64(self.value.as_f64().ok_or_else(|| self.expected("number"))?)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(self.value.as_bool().ok_or_else(|| self.expected("boolean"))?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.text()? {
            Cow::Borrowed(text) => visitor.visit_borrowed_str(text),
            Cow::Owned(text) => visitor.visit_string(text),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    /// A member that is there is never absent: `null` is a value of the wrong type.
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    /// Only alternates come here, by the schema's name for them; see [`alternate`].
    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Error> {
        if matches!(self.value.kind(), Kind::List | Kind::Object) {
            let found = if self.value.kind() == Kind::List { Unexpected::Seq } else { Unexpected::Map };
            return Err(Error::invalid_type(found, &visitor).at(self.path));
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let word = self.text()?;
        visitor.visit_enum(Word(&word)).map_err(|error: Error| error.at(self.path))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.value.kind() != Kind::List {
            return Err(self.expected("array"));
        }
        visitor.visit_seq(Elements { values: self.value.elements(), index: 0, path: self.path })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if self.value.kind() != Kind::Object {
            return Err(self.expected("object"));
        }
        let left = self.value.members().collect();
        visitor.visit_map(Members { declared: fields.iter(), current: None, left, path: self.path })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        // No type of the schema is a free map.
        Err(Error::invalid_type(Unexpected::Map, &visitor).at(self.path))
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i128 u8 u16 u32 u128 f32 char bytes byte_buf unit unit_struct tuple tuple_struct identifier
        ignored_any
    }
}

/// The word of an enumeration.
struct Word<'a>(&'a str);

impl<'de> EnumAccess<'de> for Word<'_> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let name: StrDeserializer<'_, Error> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Word<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _seed: T) -> Result<T::Value, Error> {
        Err(Error::Expected("string".to_owned()))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _length: usize, _visitor: V) -> Result<V::Value, Error> {
        Err(Error::Expected("string".to_owned()))
    }

    fn struct_variant<V: Visitor<'de>>(self, _fields: &'static [&'static str], _visitor: V) -> Result<V::Value, Error> {
        Err(Error::Expected("string".to_owned()))
    }
}

struct Elements<'p, I> {
    values: I,
    index: usize,
    path: &'p Path<'p>,
}

impl<'de, I: Iterator<Item = Value<'de>>> SeqAccess<'de> for Elements<'_, I> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some(value) = self.values.next() else { return Ok(None) };
        let path = Path::Element(self.path, self.index);
        self.index += 1;
        seed.deserialize(Parameter { value, path: &path }).map(Some)
    }
}

/// Gives serde every declared member in the schema's order, absent ones as [`Absent`].
struct Members<'de, 'p> {
    declared: std::slice::Iter<'static, &'static str>,
    current: Option<(&'static str, Option<Value<'de>>)>,
    left: Vec<(Cow<'de, str>, Value<'de>)>,
    path: &'p Path<'p>,
}

impl<'de> MapAccess<'de> for Members<'de, '_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(&name) = self.declared.next() else {
            return match self.left.first() {
                Some((name, _)) => {
                    Err(Error::Text(format!("Parameter '{}' is unexpected", Path::Member(self.path, clip(name)))))
                }
                None => Ok(None),
            };
        };
        let found = self.left.iter().position(|(found, _)| found == name);
        let value = found.map(|index| self.left.remove(index).1);
        self.current = Some((name, value));
        let name: StrDeserializer<'_, Error> = name.into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some((name, value)) = self.current.take() else {
            return Err(Error::custom("a value was asked for before its name"));
        };
        let path = Path::Member(self.path, name);
        match value {
            Some(value) => seed.deserialize(Parameter { value, path: &path }),
            None => seed.deserialize(Absent { path: &path }),
        }
    }
}

/// A member that was not sent: `None` to an optional one, an error to any other.
struct Absent<'p> {
    path: &'p Path<'p>,
}

impl<'de> Deserializer<'de> for Absent<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Error> {
        Err(Error::Text(format!("Parameter '{}' is missing", self.path)))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_none()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// What an alternate of the schema may be: each branch with the value it makes.
#[derive(Debug)]
pub struct Branches<T> {
    integer: Option<fn(i64) -> T>,
    boolean: Option<fn(bool) -> T>,
    name: Option<Names<T>>,
}

/// The names of an alternate's branch, and what makes the value of a name's index.
type Names<T> = (&'static [&'static str], fn(usize) -> T);

impl<T> Default for Branches<T> {
    fn default() -> Self {
        Self { integer: None, boolean: None, name: None }
    }
}

impl<T> Branches<T> {
    /// A number without fraction.
    #[must_use]
    pub fn integer(self, make: fn(i64) -> T) -> Self {
        Self { integer: Some(make), ..self }
    }

    /// `true` or `false`.
    #[must_use]
    pub fn boolean(self, make: fn(bool) -> T) -> Self {
        Self { boolean: Some(make), ..self }
    }

    /// One of the names; `make` gets its index.
    #[must_use]
    pub fn name(self, names: &'static [&'static str], make: fn(usize) -> T) -> Self {
        Self { name: Some((names, make)), ..self }
    }
}

/// Parses an alternate: a value that may be of several types. `schema_name` is named if it is of none of them.
///
/// # Errors
/// As for any argument.
pub fn alternate<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    schema_name: &'static str,
    branches: Branches<T>,
) -> Result<T, D::Error> {
    deserializer.deserialize_newtype_struct(schema_name, Alternate { schema_name, branches })
}

struct Alternate<T> {
    schema_name: &'static str,
    branches: Branches<T>,
}

impl<'de, T> Visitor<'de> for Alternate<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.schema_name)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<T, E> {
        match self.branches.boolean {
            Some(make) => Ok(make(value)),
            None => Err(E::invalid_type(Unexpected::Bool(value), &self)),
        }
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<T, E> {
        match self.branches.integer {
            Some(make) => Ok(make(value)),
            None => Err(E::invalid_type(Unexpected::Signed(value), &self)),
        }
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<T, E> {
        match i64::try_from(value) {
            Ok(value) => self.visit_i64(value),
            Err(_) => self.visit_f64(value as f64),
        }
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<T, E> {
        match self.branches.integer {
            Some(_) => Err(E::invalid_type(Unexpected::Float(value), &"integer")),
            None => Err(E::invalid_type(Unexpected::Float(value), &self)),
        }
    }

    fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<T, E> {
        let Some((names, make)) = self.branches.name else {
            return Err(E::invalid_type(Unexpected::Str(word), &self));
        };
        match names.iter().position(|name| *name == word) {
            Some(index) => Ok(make(index)),
            None => Err(E::unknown_variant(word, names)),
        }
    }
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
