//! What comes at a new offset behind the watermark: of a relay in at-least-once, or of whoever has forged a
//! position. And what an id stands for.

use outbox_idempotency::{Dedup, RawMessage};

use super::{
    effects::{database, effects, number, with},
    watermark::{batches, published, steps, stored_again, with_header},
};

/// A relay in at-least-once had stored 1, 2 and 4, and crashed before it stored 3 again, which was refused.
#[tokio::test]
async fn what_comes_again_behind_the_watermark_is_known_by_its_id_and_what_never_came_is_taken() {
    let database = database().await;
    let (one, two) = (batches(&database).await, batches(&database).await);
    let [first, second] = [published("a", 1, 10, 0), published("a", 2, 20, 1)];
    let missed = published("b", 3, 30, 4);
    let fourth = published("a", 4, 40, 2);
    let before = [first, second.clone(), fourth.clone()];
    one.process(&before).await.expect("settled");
    let again = [
        stored_again(&second, 3),
        missed.clone(),
        stored_again(&fourth, 5),
        published("a", 5, 50, 6),
    ];
    two.process(&again).await.expect("settled");
    one.process(&again).await.expect("settled again");
    two.process(&[stored_again(&missed, 7)]).await.expect("settled, in another place");
    let taken = number(&database, "select count(*) from effects").await;
    assert_eq!(taken, 5, "{:?}", effects(&database).await);
    assert_eq!(number(&database, "select count(distinct n) from effects").await, 5);
    assert_eq!(
        number(&database, "select count(*) from inbox.messages").await,
        1,
        "the missed one's"
    );
    assert_eq!(number(&database, "select count(*) from inbox.dead_letters").await, 0);
}

/// Whoever may write to the topic, and has seen the headers of one record.
#[tokio::test]
async fn a_forged_position_lets_nothing_be_passed_over_or_doubled() {
    const FAR: u64 = 0xFFFF_FFFF_FFFF_FFF0;
    let forged = |n, offset| published("x", n, FAR, offset);
    let of_a_timeline = |n, offset| {
        let far = format!("7:9:{FAR:016X}:0000000000");
        with_header(forged(n, offset), "outbox-position", &far)
    };
    let of_an_era = |n, offset| with_header(forged(n, offset), "outbox-era", "99");
    let marked = |n, offset| with_header(forged(n, offset), "outbox-repaired", "1");
    let forms: [&dyn Fn(i32, i64) -> RawMessage; 4] =
        [&forged, &of_a_timeline, &of_an_era, &marked];
    for form in forms {
        for at_once in [true, false] {
            let database = database().await;
            let (one, two) = (batches(&database).await, batches(&database).await);
            let log = [
                published("a", 1, 10, 0),
                form(1, 1),
                published("a", 2, 20, 2),
                published("a", 3, 30, 3),
                form(2, 4),
                published("a", 4, 40, 5),
            ];
            match at_once {
                true => one.process(&log).await.expect("settled"),
                false => {
                    for message in &log {
                        one.process(std::slice::from_ref(message)).await.expect("settled");
                    }
                }
            }
            let again =
                [stored_again(&log[2], 6), stored_again(&log[0], 7), published("a", 5, 50, 8)];
            two.process(&log).await.expect("read again");
            two.process(&again).await.expect("settled");
            let ours = effects(&database).await.into_iter().filter(|step| step.key == "a");
            assert_eq!(ours.collect::<Vec<_>>(), steps(&[1, 2, 3, 4, 5]), "at once: {at_once}");
            assert_eq!(number(&database, "select count(*) from inbox.dead_letters").await, 0);
        }
    }
}

/// `docs/TRUST.md` says who can do that, and what keeps them from it.
#[tokio::test]
async fn of_two_events_under_one_id_rows_take_the_first_and_a_watermark_takes_both() {
    let first = published("a", 1, 10, 0);
    let second = with(published("b", 1, 20, 1), |m| m.id = first.id);
    for (rows, expected) in [(true, 1), (false, 2)] {
        let database = database().await;
        let processor = batches(&database).await;
        let processor = if rows { processor.dedup(Dedup::Rows) } else { processor };
        for message in [&first, &second] {
            processor.process(std::slice::from_ref(message)).await.expect("settled");
        }
        assert_eq!(number(&database, "select count(*) from effects").await, expected);
        assert_eq!(number(&database, "select count(*) from inbox.dead_letters").await, 0);
    }
}
