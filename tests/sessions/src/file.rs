// SPDX-License-Identifier: GPL-2.0
//! The form of the files.

/// A session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// `VERB.PLACE`.
    pub name: String,
    /// What is done, in order.
    pub steps: Vec<Step>,
    /// What follows the last step.
    rest: String,
}

/// A command and its answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// Comments and empty lines before it.
    pub before: String,
    /// The command, for a shell.
    pub command: String,
    /// Its exit status.
    pub status: i32,
    /// Whether it is known to change something, although its exit status says otherwise.
    pub changes: bool,
    /// What it prints on both streams.
    pub output: String,
}

const COMMAND: &str = "$ ";
const MORE: &str = ">";
const STATUS: &str = "? ";
const CHANGES: &str = ", changes";
const COMMENT: &str = "#";

impl Session {
    /// Reads it.
    pub fn parse(name: &str, text: &str) -> Result<Session, String> {
        let mut lines = text.lines().peekable();
        let mut steps: Vec<Step> = Vec::new();
        let mut before = String::new();
        while let Some(line) = lines.next() {
            let Some(command) = line.strip_prefix(COMMAND) else {
                if !(line.is_empty() || line.starts_with(COMMENT)) {
                    return Err(format!("{name}: '{line}' belongs to no command"));
                }
                before.push_str(line);
                before.push('\n');
                continue;
            };
            let mut step = Step {
                before: std::mem::take(&mut before),
                command: command.to_owned(),
                ..Step::default()
            };
            while let Some(more) = lines.next_if(|line| line.starts_with(MORE)) {
                step.command.push('\n');
                let more = &more[MORE.len()..];
                step.command
                    .push_str(more.strip_prefix(' ').unwrap_or(more));
            }
            if let Some(status) = lines.next_if(|line| line.starts_with(STATUS)) {
                let status = &status[STATUS.len()..];
                let plain = status.strip_suffix(CHANGES);
                step.changes = plain.is_some();
                let status = plain.unwrap_or(status).parse();
                step.status = status.map_err(|_| format!("{name}: {command}: no exit status"))?;
            }
            let mut output = Vec::new();
            while let Some(line) = lines.next_if(|line| !ends(line)) {
                output.push(line);
            }
            while output.last() == Some(&"") {
                output.pop();
                before.push('\n');
            }
            output.iter().for_each(|line| {
                step.output.push_str(line);
                step.output.push('\n');
            });
            steps.push(step);
        }
        Ok(Session {
            name: name.to_owned(),
            steps,
            rest: before,
        })
    }

    /// The file's text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for step in &self.steps {
            text.push_str(&step.before);
            for (index, line) in step.command.split('\n').enumerate() {
                let begin = if index == 0 { COMMAND } else { "> " };
                text.push_str(format!("{begin}{line}").trim_end());
                text.push('\n');
            }
            if step.status != 0 {
                let changes = if step.changes { CHANGES } else { "" };
                text.push_str(&format!("{STATUS}{}{changes}\n", step.status));
            }
            text.push_str(&step.output);
        }
        text + &self.rest
    }

    /// Where it is played.
    pub fn place(&self) -> &str {
        self.name.rsplit_once('.').map_or("", |(_, place)| place)
    }

    /// The same session with other steps.
    pub fn with(&self, steps: Vec<Step>) -> Session {
        Session {
            steps,
            ..self.clone()
        }
    }
}

/// Whether a line ends what a command printed.
pub fn ends(line: &str) -> bool {
    line.starts_with(COMMAND) || line.starts_with(COMMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# What this is about.

$ daxdmem create vm1 \\
>   --size 3M \\
>
? 1
daxdmem: error: no
Use 2M

  $ not a command

# And then.
$ true
? 1, changes
$ echo x
x

";

    #[test]
    fn what_is_read_is_written() {
        let session = Session::parse("x.std", TEXT).unwrap();
        assert_eq!(session.text(), TEXT);
        let [first, second, third] = session.steps.as_slice() else {
            panic!("{session:?}")
        };
        assert_eq!(first.command, "daxdmem create vm1 \\\n  --size 3M \\\n");
        assert_eq!(first.status, 1);
        assert!(first.output.ends_with("Use 2M\n\n  $ not a command\n"));
        assert_eq!((second.status, second.changes), (1, true));
        assert_eq!(second.output, "");
        assert_eq!(second.before, "\n# And then.\n");
        assert_eq!(third.output, "x\n");
    }

    #[test]
    fn what_is_no_session() {
        let error = Session::parse("x.std", "hello\n$ true\n").unwrap_err();
        assert_eq!(error, "x.std: 'hello' belongs to no command");
        let error = Session::parse("x.std", "$ false\n? yes\n").unwrap_err();
        assert_eq!(error, "x.std: false: no exit status");
    }
}
