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
    /// Messages of one topic with the same key are in order. Messages without a key are in order per partition, or
    /// per queue if the broker has no partitions.
    #[default]
    Key,
    /// Those of one partition, or of one queue where there are none.
    Partition,
    /// None: each message stands alone.
    None,
}

impl OrderBy {
    /// The lane of a message: those with one lane are kept in order.
    pub(crate) fn lane<T>(self, message: &Message<T>) -> Uuid {
        let Source { topic, partition, .. } = &message.source;
        // What is parked of a queue has the lane that earlier versions gave it.
        let partition = partition.unwrap_or(0);
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
                timestamp: None,
                source: Source { topic: topic.into(), partition, offset: None },
                attempt: 1,
            })
        };
        let key = |topic, partition, key| lane(OrderBy::Key, topic, Some(partition), key);
        assert_eq!(key("a", 0, Some("k")), key("a", 1, Some("k")));
        assert_ne!(key("a", 0, Some("k")), key("b", 0, Some("k")));
        assert_ne!(key("a", 0, Some("k")), key("a", 0, Some("l")));
        assert_eq!(key("a", 0, None), key("a", 0, None));
        assert_ne!(key("a", 0, None), key("a", 1, None));
        let partition = |partition, key| lane(OrderBy::Partition, "a", Some(partition), key);
        assert_eq!(partition(0, Some("k")), partition(0, Some("l")));
        assert_eq!(partition(0, Some("k")), key("a", 0, None));
        assert_eq!(lane(OrderBy::None, "a", Some(0), Some("k")), Uuid::nil());
        let queue = |name, key| lane(OrderBy::Key, name, None, key);
        assert_eq!(queue("a", Some("k")), key("a", 7, Some("k")), "a key needs no partition");
        assert_eq!(queue("a", None), lane(OrderBy::Partition, "a", None, Some("k")));
        assert_ne!(queue("a", None), queue("b", None));
    }
}
