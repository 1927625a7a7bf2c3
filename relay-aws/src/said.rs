//! What a service says of a request, or of one message of it, sorted by what the caller must do next. Pure.

use std::fmt;

/// What was said, and what follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// What to do next.
    pub what: What,
    /// The service's own word; empty where it said nothing.
    pub code: String,
    /// For a person.
    pub text: String,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// There is no such queue or topic.
    Missing,
    /// The right to use it is missing, or to use its key.
    Denied,
    /// Who asks is not known: nothing is said of any message.
    Unknown,
    /// It is certain that nothing was stored; later it may be.
    NotNow,
    /// Never: something is wrong with what was sent.
    Refused,
    /// Never, for it is too large.
    TooLarge,
    /// It may be stored, or not.
    Uncertain,
}

/// Words of either service, in lower case, and what they begin with: SQS has had two protocols, with words of their own for
/// the same (`AWS.SimpleQueueService.NonExistentQueue`).
const WORDS: &[(What, &[&str])] = &[
    (
        What::NotNow,
        &[
            "throttl",
            "requestthrottled",
            "overlimit",
            "kmsthrottl",
            "toomanyrequests",
            "requestlimitexceeded",
            "slowdown",
        ],
    ),
    (What::Missing, &["queuedoesnotexist", "nonexistentqueue", "queuedeletedrecently", "notfound"]),
    (
        What::Unknown,
        &[
            "expiredtoken",
            "invalidclienttokenid",
            "unrecognizedclient",
            "signaturedoesnotmatch",
            "invalidaccesskeyid",
            "incompletesignature",
            "missingauthenticationtoken",
            "requestexpired",
            "optinrequired",
            "invalidsecurity",
        ],
    ),
    (What::Denied, &["accessdenied", "authorizationerror", "kms", "notauthorized", "unauthorized"]),
    (What::TooLarge, &["batchrequesttoolong", "messagetoolong"]),
];

/// Of what is too large the services only say it in a sentence.
const TOO_LARGE: [&str; 3] = ["must be shorter than", "message too long", "too large"];

impl Said {
    /// By the service itself. `is_ours` says whether the fault is with what was sent.
    pub fn new(code: &str, text: &str, is_ours: bool) -> Self {
        let what = what(code, text, is_ours);
        Said { what, code: code.to_owned(), text: text.to_owned() }
    }

    /// Nothing was said, or nothing that is understood.
    pub fn uncertain(text: impl Into<String>) -> Self {
        Said { what: What::Uncertain, code: String::new(), text: text.into() }
    }
}

fn what(code: &str, text: &str, is_ours: bool) -> What {
    // What is before a `#` or a dot is whose word it is.
    let word = code.rsplit(['#', '.']).next().unwrap_or(code).to_ascii_lowercase();
    let text = text.to_ascii_lowercase();
    let known = WORDS.iter().find(|(_, words)| words.iter().any(|it| word.starts_with(it)));
    match known {
        Some((what, _)) => *what,
        None if !is_ours => What::NotNow,
        None if TOO_LARGE.iter().any(|it| text.contains(it)) => What::TooLarge,
        None => What::Refused,
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code.is_empty(), self.text.is_empty()) {
            (true, _) => f.write_str(&self.text),
            (false, true) => f.write_str(&self.code),
            (false, false) => write!(f, "{}: {}", self.code, self.text),
        }
    }
}

impl std::error::Error for Said {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_of_the_services_says_what_to_do_next() {
        for (code, text, is_ours, expected) in [
            ("com.amazonaws.sqs#QueueDoesNotExist", "", true, What::Missing),
            ("AWS.SimpleQueueService.NonExistentQueue", "", true, What::Missing),
            ("NotFound", "Topic does not exist", true, What::Missing),
            ("AccessDenied", "", true, What::Denied),
            ("AccessDeniedException", "", true, What::Denied),
            ("AuthorizationError", "", true, What::Denied),
            ("KMSAccessDenied", "", true, What::Denied),
            ("KmsDisabled", "", true, What::Denied),
            // Even where it is called our fault.
            ("KmsThrottled", "", true, What::NotNow),
            ("KMSThrottlingException", "", true, What::NotNow),
            ("RequestThrottled", "", true, What::NotNow),
            ("ThrottlingException", "Rate exceeded", true, What::NotNow),
            ("Throttled", "", true, What::NotNow),
            ("InternalError", "", false, What::NotNow),
            ("ServiceUnavailable", "", false, What::NotNow),
            ("ExpiredToken", "", true, What::Unknown),
            ("InvalidClientTokenId", "", true, What::Unknown),
            ("SignatureDoesNotMatch", "", true, What::Unknown),
            ("AWS.SimpleQueueService.BatchRequestTooLong", "", true, What::TooLarge),
            (
                "InvalidParameterValue",
                "Message must be shorter than 2048 bytes.",
                true,
                What::TooLarge,
            ),
            ("InvalidParameter", "Invalid parameter: Message too long", true, What::TooLarge),
            ("InvalidMessageContents", "", true, What::Refused),
            ("InvalidAttributeValue", "InvalidMessageContents", true, What::Refused),
        ] {
            assert_eq!(Said::new(code, text, is_ours).what, expected, "{code}: {text}");
        }
    }

    #[test]
    fn what_is_said_is_the_word_and_the_sentence() {
        assert_eq!(Said::new("A", "b c", true).to_string(), "A: b c");
        assert_eq!(Said::new("A", "", true).to_string(), "A");
        assert_eq!(Said::uncertain("no answer").to_string(), "no answer");
    }
}
