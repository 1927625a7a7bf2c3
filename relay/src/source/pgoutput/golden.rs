//! Messages that a PostgreSQL 15 server sent, for tests here and in `route`.
//!
//! Taken with `pg_logical_slot_peek_binary_changes(…, 'proto_version', '1', 'binary', …)` after
//!
//! ```sql
//! create table t (id int, note text);
//! create table outbox_all (id uuid, topic varchar(20), key int8, type name, payload jsonb,
//!   headers jsonb, partition int2, created_at timestamptz, ts timestamp, x xid8, ok bool,
//!   raw bytea, j json, pad char(4));
//! insert into t values (1, null);
//! insert into outbox_all values ('0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b', 'orders', -42, 'made',
//!   '{"a": 1}', '{"x": "y"}', 3, '2026-11-24 00:01:27.123456+05:30', '1999-12-31 23:59:59.5',
//!   '123456789012', true, '\x00ff5c', '{ "k" :1}', 'ab');
//! select pg_logical_emit_message(true, 'outbox', 'hello');
//! truncate t;
//! ```

pub(crate) const BEGIN: &str = "420000000001527d90000303f94e2ddbc4000002d7";
pub(crate) const COMMIT: &str = "43000000000001527d900000000001527dc0000303f94e2ddbc4";
pub(crate) const RELATION_T: &str =
    "52000040007075626c69630074006400020069640000000017ffffffff006e6f74650000000019ffffffff";
pub(crate) const INSERT_T: &str = "49000040004e00027400000001316e";
pub(crate) const MESSAGE: &str = "4d010000000001527f286f7574626f78000000000568656c6c6f";
pub(crate) const TRUNCATE: &str = "54000000010000004000";
/// Of `outbox_all`, and its row in both formats.
pub(crate) const RELATION: &str = "52000040057075626c6963006f7574626f785f616c6c0064000e0069640000000b86ffffffff00746f706963000000041300000018006b65790000000014ffffffff00747970650000000013ffffffff007061796c6f61640000000edaffffffff00686561646572730000000edaffffffff00706172746974696f6e0000000015ffffffff00637265617465645f617400000004a0ffffffff007473000000045affffffff007800000013cdffffffff006f6b0000000010ffffffff007261770000000011ffffffff006a0000000072ffffffff00706164000000041200000008";
pub(crate) const INSERT_TEXT: &str = "49000040054e000e740000002430313930613162322d633364342d376535662d386139622d30633164326533663461356274000000066f726465727374000000032d343274000000046d61646574000000087b2261223a20317d740000000a7b2278223a202279227d740000000133740000001d323032362d31312d32332031383a33313a32372e3132333435362b30307400000015313939392d31322d33312032333a35393a35392e35740000000c31323334353637383930313274000000017474000000085c7830306666356374000000097b20226b22203a317d740000000461622020";
pub(crate) const INSERT_BINARY: &str = "49000040054e000e62000000100190a1b2c3d47e5f8a9b0c1d2e3f4a5b62000000066f72646572736200000008ffffffffffffffd662000000046d6164656200000009017b2261223a20317d620000000b017b2278223a202279227d620000000200036200000008000303f4920960006200000008fffffffffff85ee062000000080000001cbe991a14620000000101620000000300ff5c62000000097b20226b22203a317d620000000461622020";

/// The bytes that `hex` stands for.
pub(crate) fn bytes(hex: &str) -> Vec<u8> {
    let (pairs, odd) = hex.as_bytes().as_chunks::<2>();
    assert!(odd.is_empty());
    let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16).unwrap()).unwrap();
    pairs.iter().map(|[high, low]| digit(*high) << 4 | digit(*low)).collect()
}
