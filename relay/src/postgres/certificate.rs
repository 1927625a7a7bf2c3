//! What PostgreSQL's handshake needs out of a server's certificate: the digest for SCRAM's channel
//! binding (RFC 5929, `tls-server-end-point`), and the fields of certificates that webpki does not
//! read, X.509 version 1, or takes no name from, because they have no subjectAltName.
//!
//! A checked reader of DER, as deep as that needs and no deeper. Trust is decided in `tls`.

use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

const SEQUENCE: u8 = 0x30;
const BOOLEAN: u8 = 0x01;
const BIT_STRING: u8 = 0x03;
const OBJECT_IDENTIFIER: u8 = 0x06;
/// `[0]`, constructed: the version of a certificate, the hash of RSASSA-PSS's parameters.
const CONTEXT_0: u8 = 0xA0;
/// `[3]`, constructed: the extensions of a certificate.
const CONTEXT_3: u8 = 0xA3;

/// Bytes not yet read.
#[derive(Clone, Copy)]
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// Takes the next element: its tag, its content, and all of it with the header.
    fn element(&mut self) -> Option<(u8, Der<'a>, &'a [u8])> {
        let whole = self.0;
        let (&tag, rest) = whole.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = if first < 0x80 {
            (usize::from(first), rest)
        } else {
            // Certificates are far below 16 MiB: three bytes of length are enough.
            let count = usize::from(first & 0x7F);
            if count == 0 || count > 3 {
                return None;
            }
            let (bytes, rest) = rest.split_at_checked(count)?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        let element = whole.get(..whole.len() - rest.len())?;
        Some((tag, Der(content), element))
    }

    fn expect(&mut self, wanted: u8) -> Option<Der<'a>> {
        self.element().filter(|(tag, ..)| *tag == wanted).map(|(_, content, _)| content)
    }
}

/// What SCRAM binds to: the certificate's hash by its own signature's hash algorithm, MD5 and
/// SHA-1 raised to SHA-256. `None` where the signature has no hash of its own (Ed25519).
pub(super) fn channel_binding(certificate: &[u8]) -> Option<Vec<u8>> {
    let mut fields = Der(certificate).expect(SEQUENCE)?;
    fields.expect(SEQUENCE)?; // tbsCertificate
    let mut algorithm = fields.expect(SEQUENCE)?;
    let digest = match algorithm.expect(OBJECT_IDENTIFIER)?.0 {
        // RSASSA-PSS names its hash in its parameters; left out, it is SHA-1.
        [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 10] => {
            let mut parameters = algorithm.expect(SEQUENCE)?;
            match parameters.expect(CONTEXT_0) {
                Some(mut hash) => hash_named(hash.expect(SEQUENCE)?.expect(OBJECT_IDENTIFIER)?.0)?,
                None => Hash::Sha256,
            }
        }
        [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, rsa] => match rsa {
            4 | 5 | 11 => Hash::Sha256,
            12 => Hash::Sha384,
            13 => Hash::Sha512,
            14 => Hash::Sha224,
            _ => return None,
        },
        [0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 1] => Hash::Sha256, // ECDSA with SHA-1
        [0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, ecdsa] => match ecdsa {
            1 => Hash::Sha224,
            2 => Hash::Sha256,
            3 => Hash::Sha384,
            4 => Hash::Sha512,
            _ => return None,
        },
        _ => return None,
    };
    Some(match digest {
        Hash::Sha224 => Sha224::digest(certificate).to_vec(),
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

fn hash_named(identifier: &[u8]) -> Option<Hash> {
    match identifier {
        [0x2B, 0x0E, 3, 2, 26] => Some(Hash::Sha256), // SHA-1
        [0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, sha2] => match sha2 {
            1 => Some(Hash::Sha256),
            2 => Some(Hash::Sha384),
            3 => Some(Hash::Sha512),
            4 => Some(Hash::Sha224),
            _ => None,
        },
        _ => None,
    }
}

/// A certificate's fields, each as it stands in it.
pub(super) struct Fields<'a> {
    /// Without a version field, and so without extensions.
    pub(super) is_version_1: bool,
    /// What was signed.
    pub(super) signed: &'a [u8],
    /// Content of the signature's `AlgorithmIdentifier`.
    pub(super) algorithm: &'a [u8],
    pub(super) signature: &'a [u8],
    pub(super) issuer: &'a [u8],
    pub(super) subject: &'a [u8],
    /// In seconds since the Unix epoch.
    pub(super) not_before: i64,
    pub(super) not_after: i64,
    /// The `SubjectPublicKeyInfo`, whole; then the content of its two fields.
    pub(super) key_info: &'a [u8],
    pub(super) key_algorithm: &'a [u8],
    pub(super) key: &'a [u8],
    /// Whether it may sign others: so says basicConstraints.
    pub(super) is_authority: bool,
    pub(super) has_alternative_names: bool,
}

impl<'a> Fields<'a> {
    /// `None` where it is no certificate.
    pub(super) fn read(certificate: &'a [u8]) -> Option<Self> {
        let mut outer = Der(certificate).expect(SEQUENCE)?;
        let (_, mut fields, signed) = outer.element().filter(|(tag, ..)| *tag == SEQUENCE)?;
        let algorithm = outer.expect(SEQUENCE)?.0;
        let signature = bits(outer.expect(BIT_STRING)?)?;
        // Version 1 has no version field: the serial number comes first.
        let (tag, ..) = fields.element()?;
        let is_version_1 = tag != CONTEXT_0;
        if !is_version_1 {
            fields.element()?;
        }
        fields.expect(SEQUENCE)?; // The signature's algorithm again.
        let (_, _, issuer) = fields.element()?;
        let mut validity = fields.expect(SEQUENCE)?;
        let (not_before, not_after) = (moment(&mut validity)?, moment(&mut validity)?);
        let (_, _, subject) = fields.element()?;
        let (_, mut key_fields, key_info) =
            fields.element().filter(|(tag, ..)| *tag == SEQUENCE)?;
        let (is_authority, has_alternative_names) = extensions(fields);
        Some(Fields {
            is_version_1,
            signed,
            algorithm,
            signature,
            issuer,
            subject,
            not_before,
            not_after,
            key_info,
            key_algorithm: key_fields.expect(SEQUENCE)?.0,
            key: bits(key_fields.expect(BIT_STRING)?)?,
            is_authority,
            has_alternative_names,
        })
    }

    /// The first common name of its subject.
    pub(super) fn common_name(&self) -> Option<&'a str> {
        let mut names = Der(self.subject).expect(SEQUENCE)?;
        while let Some((_, mut set, _)) = names.element() {
            let mut attribute = set.expect(SEQUENCE)?;
            if attribute.expect(OBJECT_IDENTIFIER)?.0 == [0x55, 4, 3] {
                let (_, text, _) = attribute.element()?;
                return std::str::from_utf8(text.0).ok();
            }
        }
        None
    }
}

/// A whole number of bytes.
fn bits(string: Der<'_>) -> Option<&[u8]> {
    string.0.split_first().filter(|(unused, _)| **unused == 0).map(|(_, bytes)| bytes)
}

/// `UTCTime` or `GeneralizedTime`, in the one form that DER allows, in seconds.
fn moment(fields: &mut Der<'_>) -> Option<i64> {
    let (tag, content, _) = fields.element()?;
    let text = std::str::from_utf8(content.0).ok()?.strip_suffix('Z')?;
    let text = match tag {
        0x17 if text.get(..2)? >= "50" => format!("19{text}"),
        0x17 => format!("20{text}"),
        0x18 => text.to_owned(),
        _ => return None,
    };
    let moment = jiff::civil::DateTime::strptime("%Y%m%d%H%M%S", text).ok()?;
    Some(jiff::tz::Offset::UTC.to_timestamp(moment).ok()?.as_second())
}

/// Whether the extensions say that it is an authority, and give alternative names.
fn extensions(mut fields: Der<'_>) -> (bool, bool) {
    let (mut is_authority, mut has_names) = (false, false);
    while let Some((tag, mut content, _)) = fields.element() {
        if tag != CONTEXT_3 {
            continue;
        }
        let mut list = content.expect(SEQUENCE).unwrap_or(Der(&[]));
        while let Some(mut extension) = list.expect(SEQUENCE) {
            match extension.expect(OBJECT_IDENTIFIER).map(|identifier| identifier.0) {
                Some([0x55, 0x1D, 17]) => has_names = true,
                Some([0x55, 0x1D, 19]) => {
                    let mut value = extension.element();
                    if matches!(value, Some((BOOLEAN, ..))) {
                        value = extension.element(); // It was marked as critical.
                    }
                    let says = value.and_then(|(_, mut octets, _)| {
                        octets.expect(SEQUENCE)?.expect(BOOLEAN).map(|flag| flag.0 == [0xFF])
                    });
                    is_authority = says.unwrap_or(false);
                }
                _ => {}
            }
        }
    }
    (is_authority, has_names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A certificate's outline: an empty body, the given signature algorithm.
    fn signed_with(algorithm: &[u8]) -> Vec<u8> {
        let length = |n: usize| u8::try_from(n).expect("short");
        let mut content = vec![SEQUENCE, 0, SEQUENCE, length(algorithm.len())];
        content.extend(algorithm);
        let mut der = vec![SEQUENCE, length(content.len())];
        der.extend(content);
        der
    }

    #[test]
    fn the_hash_is_that_of_the_signature() {
        let rsa = |last| vec![6, 9, 0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, last, 5, 0];
        let ecdsa = |last| vec![6, 8, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, last];
        let mut pss = vec![6, 9, 0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 10, 0x30, 15];
        pss.extend([0xA0, 13, 0x30, 11, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3]);
        for (algorithm, bytes) in [
            (rsa(4), Some(32)),
            (rsa(5), Some(32)),
            (rsa(11), Some(32)),
            (rsa(12), Some(48)),
            (rsa(13), Some(64)),
            (ecdsa(2), Some(32)),
            (ecdsa(3), Some(48)),
            (pss, Some(64)),
            (vec![6, 3, 0x2B, 0x65, 0x70], None), // Ed25519
        ] {
            let der = signed_with(&algorithm);
            assert_eq!(channel_binding(&der).map(|hash| hash.len()), bytes, "{algorithm:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, algorithm in "\\PC{0,100}") {
            channel_binding(&bytes);
            Fields::read(&bytes);
            let der = signed_with(algorithm.get(..algorithm.len().min(60)).unwrap_or("").as_bytes());
            channel_binding(&der);
            Fields::read(&der);
        }
    }
}
