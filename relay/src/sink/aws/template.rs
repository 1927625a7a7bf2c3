//! How a queue or topic is named after a record's topic, and which of the services' names it is. Pure.

use std::{fmt, str::FromStr};

use outbox_relay_aws::Kind;

pub(super) const TOPIC: &str = "{topic}";
const FIFO: &str = ".fifo";
const ARN: &str = "arn:";
/// Characters of a queue's name and of a topic's, at most; the suffix among them.
const QUEUE_CHARS_MAX: usize = 80;
const TOPIC_CHARS_MAX: usize = 256;

/// A text with `{topic}` in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(String);

impl FromStr for Template {
    type Err = String;

    /// # Errors
    /// What is wrong with it.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.matches(TOPIC).count() != 1 || text.replace(TOPIC, "").contains(['{', '}']) {
            return Err(format!("{text:?} does not have {TOPIC} once, and no other braces"));
        }
        Ok(Template(text.to_owned()))
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Template {
    /// A FIFO queue that is named after the topic.
    pub fn queue() -> Self {
        Template(format!("{TOPIC}{FIFO}"))
    }

    /// Whether its queues or topics keep the order of each group: their names say so.
    pub fn is_fifo(&self) -> bool {
        self.0.ends_with(FIFO)
    }

    /// Whether it is one of a topic of SNS.
    pub fn is_arn(&self) -> bool {
        self.0.starts_with(ARN) && self.0.split(':').count() == 6
    }

    /// The region of an ARN.
    pub(super) fn region(&self) -> Option<&str> {
        let region = self.0.strip_prefix(ARN)?.split(':').nth(2)?;
        Some(region).filter(|region| !region.is_empty())
    }

    /// For a topic. The services' names have no dots, and topics often do: a dash stands for each.
    ///
    /// # Errors
    /// It would be no name that the service allows.
    pub(super) fn of(&self, kind: Kind, topic: &str) -> Result<String, String> {
        let topic = topic.replace('.', "-");
        let made = self.0.replace(TOPIC, &topic);
        let (name, max) = match kind {
            Kind::Sqs => (made.as_str(), QUEUE_CHARS_MAX),
            Kind::Sns => (made.rsplit(':').next().unwrap_or_default(), TOPIC_CHARS_MAX),
        };
        let plain = name.strip_suffix(FIFO).unwrap_or(name);
        let is_plain =
            |text: &str| text.bytes().all(|it| it.is_ascii_alphanumeric() || b"_-".contains(&it));
        // Of the topic itself as well: one with a colon would name another account.
        if topic.is_empty() || !is_plain(&topic) || !is_plain(plain) || name.len() > max {
            return Err(format!(
                "a name has letters, digits, - and _, {max} characters at most with {FIFO}"
            ));
        }
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> Template {
        text.parse().expect("a template")
    }

    #[test]
    fn queues_and_topics_are_named_after_topics() {
        assert_eq!(Template::queue().of(Kind::Sqs, "orders").as_deref(), Ok("orders.fifo"));
        assert_eq!(Template::queue().of(Kind::Sqs, "shop.a").as_deref(), Ok("shop-a.fifo"));
        let standard = template("{topic}").of(Kind::Sqs, "a.fifo");
        assert_eq!(standard.as_deref(), Ok("a-fifo"), "a topic makes no other kind of queue");
        let arn = template("arn:aws:sns:eu-west-1:123456789012:shop-{topic}");
        assert!(arn.is_arn() && !arn.is_fifo());
        assert_eq!(arn.region(), Some("eu-west-1"));
        let made = arn.of(Kind::Sns, "orders");
        assert_eq!(made.as_deref(), Ok("arn:aws:sns:eu-west-1:123456789012:shop-orders"));
        assert!(template("arn:aws:sns:eu-west-1:123456789012:{topic}.fifo").is_fifo());
        assert!(!template("{topic}.fifo").is_arn());
    }

    #[test]
    fn what_the_services_allow_no_name_for_is_refused() {
        for topic in ["", "a b", "ż", "a:b", &"x".repeat(76)] {
            assert!(Template::queue().of(Kind::Sqs, topic).is_err(), "{topic:?}");
        }
        assert!(Template::queue().of(Kind::Sqs, &"x".repeat(75)).is_ok());
        let arn = template("arn:aws:sns:eu-west-1:123456789012:{topic}");
        for topic in ["1:evil", "", "a/b"] {
            assert!(arn.of(Kind::Sns, topic).is_err(), "{topic:?}");
        }
    }

    #[test]
    fn another_text_is_no_template() {
        for text in ["orders", "{topic}{topic}", "{topic}-{key}", "{", ""] {
            assert!(text.parse::<Template>().is_err(), "{text}");
        }
    }
}
