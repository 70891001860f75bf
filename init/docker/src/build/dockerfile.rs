//! The Dockerfile's text: instructions with their flags, arguments and here-documents.
//!
//! The form is that of Docker's Dockerfile reference: lines that end with the escape character go on
//! in the next one, comments and empty lines among them do not count.

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Instruction {
    /// The number of its first line.
    pub(super) line: usize,
    /// In capitals.
    pub(super) name: String,
    /// `--name=value`; a flag without a value has an empty one.
    pub(super) flags: Vec<(String, String)>,
    /// What comes after the flags.
    pub(super) rest: String,
    pub(super) heredocs: Vec<Heredoc>,
}

/// A here-document: the lines up to its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Heredoc {
    pub(super) name: String,
    pub(super) content: String,
    /// Its name was not quoted: variables in it are replaced (`COPY` and `ADD` only).
    pub(super) expands: bool,
}

/// A whole file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dockerfile {
    pub(super) escape: char,
    pub(super) instructions: Vec<Instruction>,
}

/// Instructions that take flags.
const WITH_FLAGS: &[&str] = &["FROM", "RUN", "COPY", "ADD", "HEALTHCHECK"];
const WITH_HEREDOCS: &[&str] = &["RUN", "COPY", "ADD"];
const KNOWN: &[&str] = &[
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Reads a Dockerfile; what is wrong is told with its line.
pub(crate) fn parse(text: &str) -> Result<Dockerfile, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let escape = escape(text)?;
    let mut lines = text.lines().enumerate();
    let mut instructions = Vec::new();
    while let Some((number, line)) = lines.next() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut whole = line.to_owned();
        // A trailing escape joins the next line that counts.
        while whole.ends_with(escape) {
            whole.pop();
            let next = lines.by_ref().map(|(_, next)| next).find(|next| {
                let next = next.trim();
                !next.is_empty() && !next.starts_with('#')
            });
            match next {
                Some(next) => whole.push_str(next.trim_end()),
                None => break,
            }
        }
        let mut instruction = instruction(&whole, number + 1)?;
        if WITH_HEREDOCS.contains(&instruction.name.as_str()) {
            for (name, dedents, expands) in heredoc_names(&instruction.rest) {
                let mut content = String::new();
                let ended = lines.by_ref().any(|(_, line)| {
                    let shown = if dedents {
                        line.trim_start_matches('\t')
                    } else {
                        line
                    };
                    if shown == name {
                        return true;
                    }
                    content.push_str(shown);
                    content.push('\n');
                    false
                });
                if !ended {
                    return Err(format!(
                        "line {}: the here-document {name} has no end",
                        number + 1
                    ));
                }
                instruction.heredocs.push(Heredoc {
                    name,
                    content,
                    expands,
                });
            }
        }
        instructions.push(instruction);
    }
    if instructions.is_empty() {
        return Err("the Dockerfile has no instructions; it begins with FROM".to_owned());
    }
    Ok(Dockerfile { escape, instructions })
}

/// Reads one instruction, such as one that `ONBUILD` keeps.
pub(super) fn instruction(text: &str, line: usize) -> Result<Instruction, String> {
    let text = text.trim();
    let (name, mut rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let name = name.to_ascii_uppercase();
    if !KNOWN.contains(&name.as_str()) {
        return Err(format!("line {line}: unknown instruction: {name}"));
    }
    let mut flags = Vec::new();
    if WITH_FLAGS.contains(&name.as_str()) {
        loop {
            rest = rest.trim_start();
            let Some(flag) = rest.strip_prefix("--") else {
                break;
            };
            let (flag, after) = flag.split_once(char::is_whitespace).unwrap_or((flag, ""));
            let (key, value) = flag.split_once('=').unwrap_or((flag, ""));
            flags.push((key.to_owned(), value.to_owned()));
            rest = after;
        }
    }
    let rest = rest.trim().to_owned();
    if rest.is_empty() {
        return Err(format!("line {line}: {name} requires at least one argument"));
    }
    Ok(Instruction {
        line,
        name,
        flags,
        rest,
        heredocs: Vec::new(),
    })
}

/// The `# escape=` directive, which stands before everything else.
fn escape(text: &str) -> Result<char, String> {
    for line in text.lines() {
        let Some((key, value)) = line
            .trim()
            .strip_prefix('#')
            .and_then(|line| line.split_once('='))
        else {
            break;
        };
        match (key.trim().to_ascii_lowercase().as_str(), value.trim()) {
            ("escape", "`") => return Ok('`'),
            ("escape", "\\") => return Ok('\\'),
            ("escape", other) => return Err(format!("invalid escape token '{other}': must be ` or \\")),
            // `syntax` and `check` are for other builders.
            ("syntax" | "check", _) => {}
            _ => break,
        }
    }
    Ok('\\')
}

/// `<<NAME`, `<<-NAME`, `<<"NAME"`: name, whether leading tabs go, whether variables are replaced.
fn heredoc_names(rest: &str) -> Vec<(String, bool, bool)> {
    let mut found = Vec::new();
    for word in rest.split_whitespace() {
        // A file descriptor's number may stand before it.
        let Some(mark) = word
            .trim_start_matches(|c: char| c.is_ascii_digit())
            .strip_prefix("<<")
        else {
            continue;
        };
        let (dedents, mark) = mark.strip_prefix('-').map_or((false, mark), |mark| (true, mark));
        let bare = mark.trim_matches(['"', '\'']);
        let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
        if is_name(bare) {
            found.push((bare.to_owned(), dedents, bare == mark));
        }
    }
    found
}

impl Instruction {
    pub(super) fn flag(&self, name: &str) -> Option<&str> {
        let found = self.flags.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// As the build's output and the image's history tell it.
    pub(super) fn text(&self) -> String {
        let mut text = self.name.clone();
        for (key, value) in &self.flags {
            text.push_str(" --");
            text.push_str(key);
            if !value.is_empty() {
                text.push('=');
                text.push_str(value);
            }
        }
        text.push(' ');
        text.push_str(&self.rest);
        text
    }

    /// The arguments as a JSON list, if they are one.
    pub(super) fn list(&self) -> Option<Vec<String>> {
        self.rest
            .starts_with('[')
            .then(|| serde_json::from_str(&self.rest).ok())
            .flatten()
    }

    /// Refuses flags that are not `known`.
    pub(super) fn only_flags(&self, known: &[&str]) -> Result<(), String> {
        match self.flags.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            Some((key, _)) => Err(format!("{} does not take the flag --{key} here", self.name)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_joined_and_comments_left_out() {
        let file = parse(
            "# a comment\n\nfrom a AS b\nRUN one \\\n# within\n\n  two \\\n  three\nCMD [\"x\", \"y z\"]\n",
        )
        .unwrap();
        let shown: Vec<String> = file.instructions.iter().map(Instruction::text).collect();
        assert_eq!(
            shown,
            ["FROM a AS b", "RUN one   two   three", "CMD [\"x\", \"y z\"]"]
        );
        assert_eq!(file.instructions[2].list().unwrap(), ["x", "y z"]);
        assert_eq!(file.instructions[1].line, 4);
    }

    #[test]
    fn flags_and_here_documents_are_read() {
        let text =
            "FROM a\nCOPY --from=b --chown=1:2 <<EOF <<-'RAW' /d/\n$x\nEOF\n\traw $y\n\tRAW\nRUN cat\n";
        let file = parse(text).unwrap();
        let copy = &file.instructions[1];
        assert_eq!(copy.flag("from"), Some("b"));
        assert_eq!(copy.flag("chown"), Some("1:2"));
        assert_eq!(copy.heredocs[0].content, "$x\n");
        assert!(copy.heredocs[0].expands && !copy.heredocs[1].expands);
        assert_eq!(copy.heredocs[1].content, "raw $y\n");
        assert_eq!(file.instructions[2].name, "RUN");
    }

    #[test]
    fn another_escape_character_may_be_chosen() {
        let file = parse("# escape=`\nFROM a\nRUN dir C:\\ `\n more\n").unwrap();
        assert_eq!(file.escape, '`');
        assert_eq!(file.instructions[1].rest, "dir C:\\  more");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        assert!(parse("").unwrap_err().contains("no instructions"));
        assert_eq!(
            parse("FROM a\nRUNN x").unwrap_err(),
            "line 2: unknown instruction: RUNN"
        );
        assert!(
            parse("FROM a\nRUN")
                .unwrap_err()
                .contains("at least one argument")
        );
        assert!(
            parse("FROM a\nRUN <<EOF\nx\n")
                .unwrap_err()
                .contains("has no end")
        );
    }
}
