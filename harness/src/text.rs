//! Payloads that a codec packs as it packs what services send.

use std::fmt::Write as _;

/// A JSON array of orders with random numbers, of at least so many bytes. zstd packs batches of them to an eighth,
/// lz4 to a fifth.
pub fn orders(bytes: usize) -> Vec<u8> {
    let mut text = String::with_capacity(bytes + 256);
    text.push('[');
    while text.len() < bytes {
        let (id, price) = (rand::random::<u32>(), rand::random::<u16>());
        let (customer, article) = (rand::random_range(0..5_000), rand::random_range(0..300));
        // Writing to a String does not fail.
        let _ = write!(
            text,
            r#"{{"order_id":{id},"customer_id":{customer},"currency":"EUR","status":"confirmed","lines":[{{"sku":"article-{article}","quantity":1,"price_cents":{price}}}]}},"#
        );
    }
    text.push_str("null]");
    text.into_bytes()
}
