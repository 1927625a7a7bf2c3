//! The contract of `relay/src/sink`, as one suite that every kind of sink keeps: what the pipeline and the
//! daemon believe of a sink, asked of a real one, which is made as the daemon makes it.
//!
//! A kind is added by a [`kind::Kind`] of its own, which says what it can, and one line below. The sinks
//! know records and bytes of progress, so there is neither a slot nor a relay's process here.

#[cfg(feature = "aws")]
pub(crate) mod aws;
mod cases;
pub(crate) mod file;
pub(crate) mod kafka;
pub(crate) mod kind;
pub(crate) mod nats;
mod publisher;
#[cfg(feature = "pulsar")]
pub(crate) mod pulsar;
pub(crate) mod rabbit;

/// All cases for one kind. Each is a sentence that is true of it. What is in brackets is an attribute of each.
macro_rules! cases {
    ($kind:ty, $attribute:tt: $($case:ident,)+) => {
        $(
            #[tokio::test]
            # $attribute
            async fn $case() {
                super::cases::$case::<$kind>().await;
            }
        )+
    };
    ($kind:ty, $attribute:tt) => {
        cases! { $kind, $attribute:
            records_are_stored_when_a_delivery_returns_in_the_order_of_each_key,
            a_record_arrives_byte_for_byte,
            what_is_refused_is_named_with_its_reason_and_the_rest_is_delivered,
            a_refused_delivery_stores_no_progress_and_tells_what_became_of_the_rest,
            a_record_up_to_the_limit_is_delivered_and_one_beyond_it_is_refused,
            what_is_away_refuses_no_record_and_takes_all_of_them_when_it_is_back,
            a_delivery_that_was_dropped_half_way_ends_the_publisher,
            records_without_progress_are_stored_only_where_it_follows_them,
            stored_progress_is_read_back_whenever_the_publisher_ends,
            progress_is_found_by_its_own_name_alone,
            one_that_was_replaced_stores_no_progress_that_counts,
            what_was_proven_stored_is_what_a_successor_reads,
        }
    };
}

macro_rules! kinds {
    ($($name:ident: $kind:ty,)+) => {
        $(
            mod $name {
                cases! { $kind, [cfg(test)] }
            }
        )+
    };
}

kinds! {
    to_kafka_exactly_once: super::kafka::Kafka<super::kafka::ExactlyOnce>,
    to_kafka_at_least_once: super::kafka::Kafka<super::kafka::AtLeastOnce>,
    to_kafka_with_progress_in_postgres: super::kafka::Kafka<super::kafka::RecordsAlone>,
    to_a_file: super::file::File,
    to_nats: super::nats::Nats,
    to_rabbitmq: super::rabbit::Rabbit,
}

#[cfg(feature = "aws")]
kinds! {
    aws_sqs: super::aws::Sqs,
}
#[cfg(feature = "pulsar")]
kinds! {
    to_pulsar: super::pulsar::Pulsar,
}
// moto is too slow for the three cases that are not here: two of them send hundreds of records.
#[cfg(feature = "aws")]
mod aws_sns {
    cases! { super::aws::Sns, [ignore = "moto is slow: `just long` runs it"]:
        a_record_arrives_byte_for_byte,
        what_is_refused_is_named_with_its_reason_and_the_rest_is_delivered,
        a_refused_delivery_stores_no_progress_and_tells_what_became_of_the_rest,
        a_record_up_to_the_limit_is_delivered_and_one_beyond_it_is_refused,
        what_is_away_refuses_no_record_and_takes_all_of_them_when_it_is_back,
        stored_progress_is_read_back_whenever_the_publisher_ends,
        progress_is_found_by_its_own_name_alone,
        one_that_was_replaced_stores_no_progress_that_counts,
        what_was_proven_stored_is_what_a_successor_reads,
    }
}
