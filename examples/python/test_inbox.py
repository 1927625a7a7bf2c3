"""What a storm of kills does not reach: `python test_inbox.py POSTGRES_URL`, in a database of the examples. Leaves nothing."""

import datetime
import sys
import uuid

import psycopg

from inbox import Inbox, Refused, message

REPLAY = """
with chosen as (update inbox.dead_letters set state = 'replayed' where consumer_id = %(of)s and state = 'dead' returning *),
lanes as (insert into inbox.parked_lanes (consumer_id, lane) select distinct consumer_id, lane from chosen)
insert into inbox.parked (consumer_id, lane, message_id, day, topic, partition, record_offset, key, payload, headers,
    replays, produced_at, stored_at, unclaimed)
select consumer_id, lane, message_id, day, topic, partition, record_offset, key, payload, headers,
    replays + 1, produced_at, stored_at, unclaimed from chosen
"""
LETTERS = "select code, unclaimed, replays from inbox.dead_letters where consumer_id = %s and state = 'dead' order by id"


def numbered(n, key=b"k", at=None):
    at = at or datetime.datetime.now(datetime.timezone.utc)
    id = uuid.UUID(int=int(at.timestamp() * 1000) << 80 | 7 << 76 | 2 << 62 | n)
    headers = [("outbox-id", str(id).encode()), ("odd", b"\xff"), ("zero", b"\0"), ("none", None)]
    return message("t", 0, n, key, str(n).encode(), headers, produced_at=at)


def do(connection, message):
    connection.execute("insert into effects values (default, %s)", (int(message.payload),))


def fail(connection, message):
    do(connection, message)
    raise Refused("no", "a zero \0 byte")


def end(connection, message):
    do(connection, message)
    connection.commit()


def collide(connection, message):
    do(connection, message)
    raise psycopg.errors.SerializationFailure


def main(connection):
    connection.execute("create temp table effects (id int generated always as identity, n int)")
    inbox = Inbox(connection, "test")
    effects = lambda: [n for (n,) in connection.execute("select n from effects order by id")]
    letters = lambda: connection.execute(LETTERS, (inbox.consumer,)).fetchall()
    first, second = numbered(1), numbered(2)

    inbox.take(first, do)
    inbox.take(first, do)
    assert effects() == [1], "a copy has no effect"
    inbox.take(second, fail)
    inbox.take(second, do)
    assert effects() == [1] and letters() == [("no", False, 0)], "given up, and a copy is one of that"

    connection.execute(REPLAY, {"of": inbox.consumer})
    inbox.take(numbered(3), do)
    inbox.take(numbered(4, b"other"), do)
    assert effects() == [1, 4], "a key waits behind what is replayed of it, and others do not"
    assert [inbox.take_replayed(do) for _ in range(3)] == [True, True, False]
    assert effects() == [1, 4, 2, 3] and letters() == []
    inbox.take(numbered(5), do)
    assert effects() == [1, 4, 2, 3, 5], "the key is free again"

    old = numbered(6, at=datetime.datetime(2025, 1, 1, tzinfo=datetime.timezone.utc))
    inbox.take(old, do)
    inbox.take(old, do)
    assert letters() == [("outside-window", True, 0)] and 6 not in effects(), "and once"
    connection.execute(REPLAY, {"of": inbox.consumer})
    inbox.take(old, do)
    assert letters() == [], "a copy of what is replayed is none"
    assert inbox.take_replayed(fail) and not inbox.take_replayed(fail)
    assert letters() == [("no", True, 1)] and 6 not in effects()
    connection.execute(REPLAY, {"of": inbox.consumer})
    assert inbox.take_replayed(do) and effects()[-1] == 6

    seventh = numbered(7)
    inbox.take(seventh, end)
    assert letters() == [("sqlstate-none", False, 0)] and 7 not in effects(), "a handler can't commit"
    eighth = numbered(8)
    try:
        inbox.take(eighth, collide)
        raise SystemExit("what is no fault of the message is raised")
    except psycopg.OperationalError:
        pass
    assert 8 not in effects() and len(letters()) == 1
    inbox.take(eighth, do)
    assert effects()[-1] == 8, "and it can be taken again"
    assert numbered(9).headers[1:] == [["odd", {"base64": "/w=="}], ["zero", {"base64": "AA=="}], ["none", None]]

    for table in ["dead_letters", "messages"]:
        connection.execute(f"delete from inbox.{table} where consumer_id = %s", (inbox.consumer,))
    connection.execute("delete from inbox.losses")


if __name__ == "__main__":
    with psycopg.connect(sys.argv[1], autocommit=True) as connection:
        main(connection)
