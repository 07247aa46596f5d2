//! A page in the text format, read: what a tool asks of a daemon.

use std::collections::BTreeMap;

/// Samples by their names with labels, as they are written: `x_total{source="hub"}`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page(BTreeMap<String, f64>);

impl Page {
    /// Lines that are no samples are left out.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let pairs = samples.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Page(pairs.collect())
    }

    /// One sample.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// All samples of a family together, whatever their labels. `None`: there are none.
    #[must_use]
    pub fn sum(&self, family: &str) -> Option<f64> {
        let end = |name: &str| name.is_empty() || name.starts_with('{');
        let from = self.0.range(family.to_owned()..).take_while(|(name, _)| name.starts_with(family));
        let mut found =
            from.filter(|(name, _)| end(&name[family.len()..])).map(|(_, value)| *value).peekable();
        found.peek()?;
        Some(found.sum())
    }

    /// The value of a label of a family, for instance the version in `hfmount_info`.
    #[must_use]
    pub fn label(&self, family: &str, label: &str) -> Option<&str> {
        let wanted = format!("{label}=\"");
        let names = self.0.range(family.to_owned()..).take_while(|(name, _)| name.starts_with(family));
        names.filter_map(|(name, _)| name.split_once(&wanted)?.1.split('"').next()).next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_and_sums() {
        let page = Page::read(
            "# HELP x_total Things.\n# TYPE x_total counter\nx_total{op=\"a b\"} 1\nx_total{op=\"c\"} 2.5\n\
             x_total_more 7\ny 0.25\nnonsense\nz what\ninfo{version=\"1.2\",volume=\"v\"} 1\n",
        );
        assert_eq!(page.get("x_total{op=\"a b\"}"), Some(1.0));
        assert_eq!((page.get("y"), page.get("x_total"), page.get("z")), (Some(0.25), None, None));
        assert_eq!((page.sum("x_total"), page.sum("y"), page.sum("none")), (Some(3.5), Some(0.25), None));
        assert_eq!(page.label("info", "volume"), Some("v"));
        assert_eq!(page.label("info", "none"), None);
    }
}
