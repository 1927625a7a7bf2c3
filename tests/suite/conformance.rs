//! What a whole relay promises, whatever it publishes to: one suite that every kind of sink keeps.
//!
//! `contract` asks a sink by itself, and `matrix` ends and freezes relays at every point; here are the
//! sizes, the line and the broker's refusals, through a relay as it is run. `just long` does more of the
//! same: [`scale`].

mod cases;
mod world;

#[cfg(feature = "aws")]
use crate::contract::aws::Sqs;
#[cfg(feature = "pulsar")]
use crate::contract::pulsar::Pulsar;
use crate::contract::{
    file::File,
    kafka::{AtLeastOnce, ExactlyOnce, Kafka, RecordsAlone},
    nats::Nats,
    rabbit::Rabbit,
};

/// How much more than CI `just long` does, by `OUTBOX_CONFORMANCE_SCALE`.
fn scale() -> u32 {
    let given = std::env::var("OUTBOX_CONFORMANCE_SCALE");
    given.map_or(1, |text| text.parse().expect("OUTBOX_CONFORMANCE_SCALE is a number"))
}

/// What is in brackets is an attribute of each case.
macro_rules! conforms {
    ($name:ident: $kind:ty, $($case:ident,)+) => {
        conforms! { $name: $kind, [cfg(test)] $($case,)+ }
    };
    ($name:ident: $kind:ty, $attribute:tt $($case:ident,)+) => {
        mod $name {
            use super::*;

            $(
                #[tokio::test]
                # $attribute
                async fn $case() {
                    super::cases::$case::<$kind>().await;
                }
            )+
        }
    };
    ($name:ident: $kind:ty) => {
        conforms! { $name: $kind,
            many_events_of_one_key_of_some_and_of_as_many_arrive_in_order,
            a_line_that_breaks_at_each_step_of_a_delivery_loses_nothing,
            what_is_refused_in_the_middle_parks_its_lane_and_holds_no_other,
            a_broker_that_does_not_answer_is_told_costs_no_memory_and_takes_all_afterwards,
        }
    };
}

conforms! { kafka_exactly_once: Kafka<ExactlyOnce> }
conforms! { kafka_at_least_once: Kafka<AtLeastOnce> }
conforms! { kafka_with_progress_in_postgres: Kafka<RecordsAlone> }
conforms! { nats: Nats }
conforms! { rabbitmq: Rabbit }
#[cfg(feature = "aws")]
conforms! { aws_sqs: Sqs,
    [ignore = "a minute: `just long` runs it"]
    many_events_of_one_key_of_some_and_of_as_many_arrive_in_order,
    a_line_that_breaks_at_each_step_of_a_delivery_loses_nothing,
    what_is_refused_in_the_middle_parks_its_lane_and_holds_no_other,
    a_broker_that_does_not_answer_is_told_costs_no_memory_and_takes_all_afterwards,
}
#[cfg(feature = "pulsar")]
conforms! { pulsar: Pulsar }
// It is no broker: there is no line that could break, and it refuses nothing.
conforms! { file: File,
    many_events_of_one_key_of_some_and_of_as_many_arrive_in_order,
}
