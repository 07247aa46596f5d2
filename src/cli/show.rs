//! Plain output: aligned lines for people.

/// Two columns.
#[derive(Debug, Default)]
pub(super) struct Table(Vec<(String, String)>);

impl Table {
    pub(super) fn row(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.0.push((name.to_owned(), value.into()));
        self
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = self.0.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, value) in &self.0 {
            writeln!(f, "{name:width$}  {value}")?;
        }
        Ok(())
    }
}
