//! Colours on a terminal that wants them: not where output goes into a file or a pipe, nor with `NO_COLOR` or `TERM=dumb`.

use std::io::IsTerminal;

/// How a word may look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Plain,
    Bold,
    Dim,
    Good,
    Fair,
    Bad,
}

/// Whether words are coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Colours(bool);

impl Colours {
    /// For standard output.
    pub(super) fn of_stdout() -> Self {
        Self::wanted(std::io::stdout().is_terminal(), |name| std::env::var(name).ok())
    }

    /// None at all.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        Colours(false)
    }

    fn wanted(terminal: bool, lookup: impl Fn(&str) -> Option<String>) -> Self {
        let none = lookup("NO_COLOR").is_some_and(|v| !v.is_empty());
        Colours(terminal && !none && lookup("TERM").is_none_or(|term| term != "dumb"))
    }

    /// The text as it should be printed. Pad before: what is added has no width.
    pub(super) fn paint(self, look: Look, text: &str) -> String {
        let code = match look {
            _ if !self.0 || text.is_empty() => return text.to_owned(),
            Look::Plain => return text.to_owned(),
            Look::Bold => "1",
            Look::Dim => "2",
            Look::Good => "32",
            Look::Fair => "33",
            Look::Bad => "31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_where_they_are_wanted() {
        let wanted = |terminal, env: &[(&str, &str)]| {
            Colours::wanted(terminal, |n| env.iter().find(|(k, _)| *k == n).map(|(_, v)| (*v).to_owned())).0
        };
        assert!(wanted(true, &[]) && wanted(true, &[("TERM", "xterm"), ("NO_COLOR", "")]));
        assert!(
            !wanted(false, &[]) && !wanted(true, &[("NO_COLOR", "1")]) && !wanted(true, &[("TERM", "dumb")])
        );
        assert_eq!(Colours(true).paint(Look::Bad, "x"), "\x1b[31mx\x1b[0m");
        assert_eq!(
            (Colours(false).paint(Look::Bad, "x"), Colours(true).paint(Look::Plain, "x")),
            ("x".into(), "x".into())
        );
    }
}
