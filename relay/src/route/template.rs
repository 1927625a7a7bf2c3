//! A topic made from columns: `outbox.event.{aggregatetype}`.

/// A parsed topic template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

/// A piece of a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Copied as it stands.
    Literal(String),
    /// Replaced by the text of this column.
    Column(String),
}

impl Template {
    /// Parses `{column}` placeholders; `{{` and `}}` stand for single braces. Not empty.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, brace) = rest.split_at(at);
            literal.push_str(before);
            if let Some(after) = brace.strip_prefix("{{") {
                literal.push('{');
                rest = after;
            } else if let Some(after) = brace.strip_prefix("}}") {
                literal.push('}');
                rest = after;
            } else if let Some((column, after)) =
                brace.strip_prefix('{').and_then(|open| open.split_once('}'))
            {
                if column.is_empty() || column.contains('{') {
                    return Err(format!("{{{column}}} names no column"));
                }
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                }
                parts.push(Part::Column(column.to_owned()));
                rest = after;
            } else {
                return Err(format!(
                    "the brace at byte {} has no partner; a brace of the topic itself is doubled",
                    text.len() - brace.len()
                ));
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        if parts.is_empty() { Err("it is empty".to_owned()) } else { Ok(Template { parts }) }
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The topic itself, where no column has a part in it.
    pub(super) fn literal(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// The columns it reads, in order; one may come twice.
    pub(super) fn columns(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Literal(_) => None,
            Part::Column(column) => Some(column.as_str()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Vec<Part> {
        Template::parse(text).unwrap().parts
    }

    fn literal(text: &str) -> Part {
        Part::Literal(text.to_owned())
    }

    fn column(name: &str) -> Part {
        Part::Column(name.to_owned())
    }

    #[test]
    fn placeholders_and_doubled_braces_are_told_apart() {
        assert_eq!(parse("events"), [literal("events")]);
        assert_eq!(parse("a.{b}"), [literal("a."), column("b")]);
        assert_eq!(parse("{a}{b}.c"), [column("a"), column("b"), literal(".c")]);
        assert_eq!(parse("{{{a}}}"), [literal("{"), column("a"), literal("}")]);
    }

    #[test]
    fn what_names_no_column_is_refused() {
        for text in ["", "{}", "{a", "a}", "{a}}", "{a{b}}"] {
            assert!(Template::parse(text).is_err(), "{text:?}");
        }
    }
}
