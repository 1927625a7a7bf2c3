//! Subjects: which one a record gets, and whether a stream takes it. Pure.

use std::{fmt, str::FromStr};

/// How subjects are made of topics: a text with `{topic}` and `{partition}` in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(String);

impl Default for Template {
    fn default() -> Self {
        Template("{topic}.{partition}".into())
    }
}

impl FromStr for Template {
    type Err = String;

    /// # Errors
    /// What is wrong with it.
    fn from_str(text: &str) -> Result<Self, String> {
        if !text.contains("{topic}") {
            return Err("has no {topic}: events of all topics would be one subject's".into());
        }
        let template = Template(text.to_owned());
        let example = template.subject("topic", 0);
        if !is_valid(&example) || example.contains(['{', '}']) {
            return Err(format!("makes {example:?}, which is no subject"));
        }
        Ok(template)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Template {
    /// The subject of a record.
    pub fn subject(&self, topic: &str, partition: i32) -> String {
        let partition = partition.to_string();
        self.0.replace("{partition}", &partition).replace("{topic}", topic)
    }

    /// Whether a record of this topic can have this subject.
    pub(super) fn is_of(&self, topic: &str, subject: &str) -> bool {
        matches(&self.0.replace("{partition}", "*").replace("{topic}", topic), subject)
    }
}

/// Whether records can have this subject: tokens with dots between, none empty, without wildcards.
pub(super) fn is_valid(subject: &str) -> bool {
    let token = |token: &str| {
        let fits = |c: char| !c.is_whitespace() && !c.is_control() && c != '*' && c != '>';
        !token.is_empty() && token.chars().all(fits)
    };
    subject.split('.').all(token)
}

/// Whether a stream's filter takes this subject: `*` is one token, `>` at the end one or more.
pub(super) fn matches(filter: &str, subject: &str) -> bool {
    let (mut filter, mut tokens) = (filter.split('.'), subject.split('.'));
    loop {
        match (filter.next(), tokens.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(wanted), Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_takes_what_the_server_would_take() {
        for (filter, subject) in [
            ("orders", "orders"),
            ("orders.*", "orders.1"),
            ("orders.>", "orders.eu.1"),
            (">", "orders"),
            ("*.*", "a.b"),
            ("*.b.>", "a.b.c.d"),
        ] {
            assert!(matches(filter, subject), "{filter} takes {subject}");
        }
        for (filter, subject) in [
            ("orders", "orders.1"),
            ("orders.*", "orders"),
            ("orders.*", "orders.1.2"),
            ("orders.>", "orders"),
            ("*.*", "a"),
            ("Orders", "orders"),
        ] {
            assert!(!matches(filter, subject), "{filter} takes no {subject}");
        }
    }

    #[test]
    fn a_subject_has_tokens_and_no_wildcards() {
        for subject in ["a", "a.b", "ä.b-c_d", "$KV.x"] {
            assert!(is_valid(subject), "{subject:?}");
        }
        for subject in ["", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", "a\tb", "a\0b"] {
            assert!(!is_valid(subject), "{subject:?}");
        }
    }

    #[test]
    fn a_template_names_the_topic_and_makes_subjects() {
        let template: Template = "eu.{topic}.p{partition}".parse().expect("it fits");
        assert_eq!(template.subject("orders", 3), "eu.orders.p3");
        assert_eq!(Template::default().subject("shop.orders", 0), "shop.orders.0");
        // What a topic's name holds is text.
        assert_eq!(Template::default().subject("{partition}", 7), "{partition}.7");
        for text in [
            "orders.{partition}",
            "{topic}.*",
            "{topic} {partition}",
            "{topic}..x",
            "{topic}.{key}",
        ] {
            assert!(text.parse::<Template>().is_err(), "{text:?}");
        }
    }
}
