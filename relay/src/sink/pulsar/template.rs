//! How a topic of Pulsar is named after a record's topic. Pure.

use std::{fmt, str::FromStr};

const TOPIC: &str = "{topic}";
const SCHEME: &str = "persistent://";

/// A text with `{topic}` in it, such as `persistent://public/default/{topic}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(String);

impl FromStr for Template {
    type Err = String;

    /// # Errors
    /// What is wrong with it.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("non-persistent://") {
            return Err(format!("{text:?} names topics that store nothing"));
        }
        let name = text.strip_prefix(SCHEME).unwrap_or(text);
        let parts: Vec<&str> = name.split('/').collect();
        let [tenant, namespace, topic] = parts[..] else {
            return Err(format!("{text:?} is not of the form {SCHEME}TENANT/NAMESPACE/{TOPIC}"));
        };
        let has_braces = |text: &str| text.contains(['{', '}']);
        let is_once = topic.matches(TOPIC).count() == 1 && !has_braces(&topic.replace(TOPIC, ""));
        if tenant.is_empty()
            || namespace.is_empty()
            || !is_once
            || has_braces(tenant)
            || has_braces(namespace)
        {
            return Err(format!(
                "{text:?} does not have {TOPIC} once behind TENANT/NAMESPACE/, and no other braces"
            ));
        }
        Ok(Template(format!("{SCHEME}{name}")))
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Template {
    /// In the namespace that every cluster has.
    pub fn in_default_namespace() -> Self {
        Template(format!("{SCHEME}public/default/{TOPIC}"))
    }

    /// For a topic. What it holds is text, whatever it looks like.
    pub(super) fn of(&self, topic: &str) -> String {
        self.0.replacen(TOPIC, topic, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_named_in_its_namespace() {
        for text in ["persistent://shop/orders/{topic}", "shop/orders/{topic}"] {
            let template: Template = text.parse().expect("a template");
            assert_eq!(template.of("a{topic}"), "persistent://shop/orders/a{topic}", "{text}");
        }
        for wrong in [
            "",
            "{topic}",
            "a/{topic}",
            "a/b/c",
            "a/{topic}/c",
            "a/b/{topic}{topic}",
            "a/b/{topic}{",
            "non-persistent://a/b/{topic}",
            "a//{topic}",
        ] {
            assert!(wrong.parse::<Template>().is_err(), "{wrong}");
        }
    }
}
