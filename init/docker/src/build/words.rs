//! Words of an instruction: variables replaced, quotes taken away, as Docker's Dockerfile reference
//! has it ("Environment replacement").

use std::iter::Peekable;
use std::str::Chars;

/// Looks a variable up.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Replaces variables and takes quotes away, in one word.
pub(super) fn word(text: &str, escape: char, lookup: Lookup<'_>) -> Result<String, String> {
    let words = Reader::new(text, escape, lookup, false).words()?;
    Ok(words.into_iter().next().unwrap_or_default())
}

/// As [`word`], cut at blanks that are not quoted; a variable's value is not cut.
pub(super) fn words(text: &str, escape: char, lookup: Lookup<'_>) -> Result<Vec<String>, String> {
    Reader::new(text, escape, lookup, true).words()
}

struct Reader<'a> {
    chars: Peekable<Chars<'a>>,
    escape: char,
    lookup: Lookup<'a>,
    cuts: bool,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str, escape: char, lookup: Lookup<'a>, cuts: bool) -> Self {
        Self {
            chars: text.chars().peekable(),
            escape,
            lookup,
            cuts,
        }
    }

    fn words(mut self) -> Result<Vec<String>, String> {
        let mut words = Vec::new();
        let mut word: Option<String> = None;
        while let Some(c) = self.chars.next() {
            if c.is_whitespace() && self.cuts {
                words.extend(word.take());
                continue;
            }
            let word = word.get_or_insert_default();
            match c {
                '\'' => self.single(word)?,
                '"' => self.double(word)?,
                '$' => word.push_str(&self.variable()?),
                c if c == self.escape => word.push(self.chars.next().unwrap_or(c)),
                c => word.push(c),
            }
        }
        words.extend(word);
        Ok(words)
    }

    fn single(&mut self, word: &mut String) -> Result<(), String> {
        loop {
            match self.chars.next() {
                Some('\'') => return Ok(()),
                Some(c) => word.push(c),
                None => {
                    return Err(
                        "unexpected end of statement while looking for matching single-quote".to_owned(),
                    );
                }
            }
        }
    }

    fn double(&mut self, word: &mut String) -> Result<(), String> {
        loop {
            match self.chars.next() {
                Some('"') => return Ok(()),
                Some('$') => word.push_str(&self.variable()?),
                Some(c) if c == self.escape => match self.chars.next() {
                    Some(next) if next == '"' || next == '$' || next == self.escape => word.push(next),
                    Some(next) => word.extend([c, next]),
                    None => word.push(c),
                },
                Some(c) => word.push(c),
                None => {
                    return Err(
                        "unexpected end of statement while looking for matching double-quote".to_owned(),
                    );
                }
            }
        }
    }

    /// What comes after a `$`.
    fn variable(&mut self) -> Result<String, String> {
        if self.chars.next_if_eq(&'{').is_none() {
            let name = self.name();
            return Ok(if name.is_empty() {
                "$".to_owned()
            } else {
                (self.lookup)(&name).unwrap_or_default()
            });
        }
        let name = self.name();
        if name.is_empty() {
            return Err("bad substitution: a variable has no name".to_owned());
        }
        let value = (self.lookup)(&name);
        let colon = self.chars.next_if_eq(&':').is_some();
        let set = value.as_ref().is_some_and(|value| !colon || !value.is_empty());
        match self.chars.next() {
            Some('}') if !colon => Ok(value.unwrap_or_default()),
            Some('-') => {
                let other = self.alternative()?;
                Ok(if set { value.unwrap_or_default() } else { other })
            }
            Some('+') => {
                let other = self.alternative()?;
                Ok(if set { other } else { String::new() })
            }
            Some('?') => {
                let message = self.alternative()?;
                if set {
                    Ok(value.unwrap_or_default())
                } else {
                    Err(format!("{name}: {message}"))
                }
            }
            _ => Err(format!("unsupported modifier in the substitution of {name}")),
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.chars.next_if(|c| c.is_alphanumeric() || *c == '_') {
            name.push(c);
        }
        name
    }

    /// Up to the brace that ends it, with variables of its own replaced.
    fn alternative(&mut self) -> Result<String, String> {
        let (mut text, mut depth) = (String::new(), 0);
        loop {
            match self.chars.next() {
                Some('}') if depth == 0 => return word(&text, self.escape, self.lookup),
                Some(c) => {
                    depth += match c {
                        '{' => 1,
                        '}' => -1,
                        _ => 0,
                    };
                    text.push(c);
                }
                None => return Err("bad substitution: a brace is missing".to_owned()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<String>, String> {
        let lookup = |name: &str| match name {
            "A" => Some("one two".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        words(text, '\\', &lookup)
    }

    #[test]
    fn variables_are_replaced_and_quotes_taken_away() {
        for (text, expected) in [
            ("a  b", vec!["a", "b"]),
            ("$A x${A}y", vec!["one two", "xone twoy"]),
            ("'$A' \"$A\" \\$A", vec!["$A", "one two", "$A"]),
            (
                "${NO:-other} ${A:-other} ${EMPTY-x}${EMPTY:-y}",
                vec!["other", "one two", "y"],
            ),
            ("${A:+set}-${NO:+set}", vec!["set-"]),
            ("${NO:-${A}} $ \"a\\\"b\"", vec!["one two", "$", "a\"b"]),
            ("k=\"v w\" 'x y'=z", vec!["k=v w", "x y=z"]),
        ] {
            assert_eq!(read(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_does_not_end_is_refused() {
        for text in ["'a", "\"a", "${A", "${A:-x", "${}", "${A*}", "${NO?say why}"] {
            assert!(read(text).is_err(), "{text}");
        }
        assert_eq!(read("${NO:?say why}").unwrap_err(), "NO: say why");
    }
}
