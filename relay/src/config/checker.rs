//! Collects what is wrong, and the checks that several settings share.

use std::{path::PathBuf, str::FromStr};

use super::{
    problem::{Origin, Problem},
    reader::{Given, Opt},
    sizes::Size,
};

/// What is wrong is added to `problems`, and a default stands in for it.
pub(super) struct Checker<'a> {
    pub(super) problems: &'a mut Vec<Problem>,
}

impl Checker<'_> {
    pub(super) fn problem(
        &mut self,
        key: &str,
        origin: &Origin,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.problems.push(Problem {
            key: key.to_owned(),
            origin: origin.clone(),
            what: what.into(),
            remedy: remedy.into(),
        });
    }

    /// Whether a problem of this key was reported while it was read: no second one then.
    pub(super) fn is_reported(&self, key: &str) -> bool {
        self.problems.iter().any(|problem| problem.key == key)
    }

    /// A setting without which nothing is published.
    pub(super) fn needed<T>(&mut self, key: &str, given: &Opt<T>, remedy: &str) {
        if given.is_none() && !self.is_reported(key) {
            self.problem(key, &Origin::Default, "is not set", remedy);
        }
    }

    /// A text with a form of its own.
    pub(super) fn parsed<T: FromStr<Err = String>>(
        &mut self,
        key: &str,
        given: Opt<String>,
        default: T,
        remedy: &str,
    ) -> T {
        let Some(Given { value, origin }) = given else { return default };
        value.parse().unwrap_or_else(|what: String| {
            self.problem(key, &origin, what, remedy);
            default
        })
    }

    /// A number from 1 up to `most`.
    pub(super) fn count<T: TryFrom<u64> + TryInto<u64> + Copy>(
        &mut self,
        key: &str,
        given: Opt<u64>,
        default: T,
        most: T,
    ) -> T {
        let Some(Given { value, origin }) = given else { return default };
        let most: u64 = most.try_into().unwrap_or(u64::MAX);
        match T::try_from(value) {
            Ok(count) if (1..=most).contains(&value) => count,
            _ => {
                let what = format!("{value} is out of range");
                self.problem(key, &origin, what, format!("use 1 to {most}"));
                default
            }
        }
    }

    /// A number of bytes, from 1 KiB up to `most`.
    pub(super) fn bytes(
        &mut self,
        key: &str,
        given: Opt<Size>,
        default: usize,
        most: usize,
    ) -> usize {
        const LEAST: usize = 1 << 10;
        let Some(Given { value, origin }) = given else { return default };
        match usize::try_from(value.0) {
            Ok(bytes) if (LEAST..=most).contains(&bytes) => bytes,
            _ => {
                let remedy = format!("use 1 KiB to {}", Size(most as u64));
                self.problem(key, &origin, format!("{value} is out of range"), remedy);
                default
            }
        }
    }

    /// `certificate_file` and `key_file` of a section: both or neither.
    pub(super) fn certificate(
        &mut self,
        section: &str,
        certificate: Opt<PathBuf>,
        key: Opt<PathBuf>,
    ) -> Option<(PathBuf, PathBuf)> {
        let (alone, name, other, remedy) = match (certificate, key) {
            (Some(certificate), Some(key)) => return Some((certificate.value, key.value)),
            (None, None) => return None,
            (Some(certificate), None) => {
                let remedy = "name the certificate's key as well";
                (certificate, "certificate_file", "key_file", remedy)
            }
            (None, Some(key)) => {
                let remedy = "name the key's certificate as well";
                (key, "key_file", "certificate_file", remedy)
            }
        };
        let what = format!("has no {section}.{other} beside it");
        self.problem(&format!("{section}.{name}"), &alone.origin, what, remedy);
        None
    }
}

/// What was given, or the default.
pub(super) fn value_or<T>(given: Opt<T>, default: T) -> T {
    given.map_or(default, |given| given.value)
}

/// What was given.
pub(super) fn value<T>(given: Opt<T>) -> Option<T> {
    given.map(|given| given.value)
}
