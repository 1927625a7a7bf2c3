//! What is kept in order, and so waits together.

use uuid::Uuid;

use crate::{
    message::{Message, Source},
    message_id::digest,
};

/// Which messages are handled one after the other, in the order in which they came; when one of
/// them waits for a retry, the later ones wait behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OrderBy {
    /// Those of one topic with one key; of those without a key, those of one partition.
    #[default]
    Key,
    /// Those of one partition.
    Partition,
    /// None: each message stands alone.
    None,
}

impl OrderBy {
    /// The lane of a message: those with one lane are kept in order.
    pub(crate) fn lane<T>(self, message: &Message<T>) -> Uuid {
        let Source { topic, partition, .. } = &message.source;
        match (self, &message.key) {
            (OrderBy::Key, Some(key)) => digest(&[topic.as_bytes(), b"key", key]),
            (OrderBy::Key | OrderBy::Partition, _) => {
                digest(&[topic.as_bytes(), b"partition", &partition.to_be_bytes()])
            }
            (OrderBy::None, _) => message.id.uuid(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{message::Headers, message_id::MessageId};

    #[test]
    fn a_lane_is_a_key_of_a_topic_or_a_partition() {
        let lane = |ordering: OrderBy, topic: &str, partition, key: Option<&str>| {
            ordering.lane(&Message {
                id: MessageId::at(Uuid::nil(), std::time::UNIX_EPOCH),
                key: key.map(|key| key.as_bytes().to_vec()),
                payload: (),
                headers: Headers::default(),
                source: Source { topic: topic.into(), partition, offset: 0 },
                attempt: 1,
            })
        };
        let key = |topic, partition, key| lane(OrderBy::Key, topic, partition, key);
        assert_eq!(key("a", 0, Some("k")), key("a", 1, Some("k")));
        assert_ne!(key("a", 0, Some("k")), key("b", 0, Some("k")));
        assert_ne!(key("a", 0, Some("k")), key("a", 0, Some("l")));
        assert_eq!(key("a", 0, None), key("a", 0, None));
        assert_ne!(key("a", 0, None), key("a", 1, None));
        let partition = |partition, key| lane(OrderBy::Partition, "a", partition, key);
        assert_eq!(partition(0, Some("k")), partition(0, Some("l")));
        assert_eq!(partition(0, Some("k")), key("a", 0, None));
        assert_eq!(lane(OrderBy::None, "a", 0, Some("k")), Uuid::nil());
    }
}
