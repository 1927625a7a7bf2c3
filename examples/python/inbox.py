"""An inbox in plain SQL: each message takes effect once, in the transaction that remembers it.

The tables are those of `outbox-relay migrate --set inbox`, and the statements those of docs/CONSUMER.md, "Without Rust", which
explains them. They are what the Rust crate does with the tables, so either can continue where the other has ended, and
`outbox-relay inbox dead-letters` works for both.
"""

import base64
import dataclasses
import datetime
import hashlib
import time
import uuid

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

REGISTER = "insert into inbox.consumers (name) values (%(name)s) on conflict do nothing"
NUMBER = "select id from inbox.consumers where name = %(name)s"
MAINTAIN = "select oldest, newest from inbox.maintain()"

CLAIM = """
select claimed <> '{}' as is_new, parked <> '{}' as waits
from inbox.claim_batch(%(consumer)s, array[%(id)s]::uuid[], array[%(day)s]::date[], array[%(lane)s]::uuid[])
"""

WAIT = """
insert into inbox.parked (consumer_id, lane, message_id, day, topic, partition, record_offset,
    key, payload, headers, produced_at, stored_at)
values (%(consumer)s, %(lane)s, %(id)s, %(day)s, %(topic)s, %(partition)s, %(offset)s,
    %(key)s, %(payload)s, %(headers)s, %(produced_at)s, %(stored_at)s)
"""

BURY = """
insert into inbox.dead_letters (consumer_id, lane, message_id, day, topic, partition, record_offset,
    key, payload, headers, produced_at, stored_at, replays, unclaimed, code, error, attempts)
values (%(consumer)s, %(lane)s, %(id)s, %(day)s, %(topic)s, %(partition)s, %(offset)s,
    %(key)s, %(payload)s, %(headers)s, %(produced_at)s, %(stored_at)s, %(replays)s, %(unclaimed)s, %(code)s, %(error)s, 1)
on conflict do nothing
"""

BURIED = "select from inbox.dead_letters where consumer_id = %(consumer)s and message_id = %(id)s"

DUE = """
select lane from inbox.parked_lanes where consumer_id = %(consumer)s and due_at <= now()
order by due_at limit 1 for update skip locked
"""

TAKE = """
delete from inbox.parked
where consumer_id = %(consumer)s and lane = %(lane)s and seq = (
    select min(seq) from inbox.parked where consumer_id = %(consumer)s and lane = %(lane)s)
returning message_id as id, day, lane, topic, partition, record_offset as "offset",
    key, payload, headers, produced_at, stored_at, replays, unclaimed
"""

FREE = """
delete from inbox.parked_lanes
where consumer_id = %(consumer)s and lane = %(lane)s and not exists (
    select from inbox.parked where consumer_id = %(consumer)s and lane = %(lane)s)
"""

HOUR = 3600
# Milliseconds of 2021 and 2100: what is outside is no time of an id of version 7.
OF_VERSION_7 = range(1_609_459_200_000, 4_102_444_800_000)


class Refused(Exception):
    """Trying again would not help: the message becomes a dead letter with this code."""

    def __init__(self, code, error):
        super().__init__(error)
        self.code = code


@dataclasses.dataclass
class Message:
    id: uuid.UUID
    day: datetime.date
    lane: uuid.UUID
    topic: str
    partition: int
    offset: int
    key: bytes | None
    payload: bytes | None
    headers: list
    produced_at: datetime.datetime | None
    stored_at: datetime.datetime | None
    replays: int = 0
    unclaimed: bool = False


def message(topic, partition, offset, key, payload, headers, produced_at=None, stored_at=None):
    """A message of outbox-relay; None if it has no id, so that a copy of it could not be told from another message."""
    told = {name: value for name, value in reversed(headers)}
    try:
        id = uuid.UUID(told["outbox-id"].decode())
        # The day is the message's own, so that each copy has the same, whenever it comes.
        if id.version == 7 and (at := id.int >> 80) in OF_VERSION_7:
            day = datetime.datetime.fromtimestamp(at / 1000, datetime.timezone.utc).date()
        elif "outbox-created-at" in told:
            day = datetime.date.fromisoformat(told["outbox-created-at"].decode()[:10])
        else:
            day = produced_at.date()
    except (KeyError, ValueError, AttributeError):
        return None
    stored = [[name, _storable(value)] for name, value in headers]
    return Message(id, day, lane(topic, partition, key), topic, partition, offset, key, payload, stored, produced_at, stored_at)


def lane(topic, partition, key):
    """What is kept in order: a key of a topic, or a partition where there is no key."""
    of = [b"partition", partition.to_bytes(4, "big")] if key is None else [b"key", key]
    parts = b"".join(len(part).to_bytes(8, "big") + part for part in [topic.encode(), *of])
    hash = bytearray(hashlib.sha256(parts).digest()[:16])
    hash[6], hash[8] = hash[6] & 0x0F | 0x80, hash[8] & 0x3F | 0x80
    return uuid.UUID(bytes=bytes(hash))


def _storable(value):
    try:
        text = None if value is None else value.decode()
    except UnicodeDecodeError:
        text = "\0"
    return {"base64": base64.b64encode(value).decode()} if text and "\0" in text else text


class Inbox:
    """Of one consumer, by its name. Another name has taken nothing yet."""

    def __init__(self, connection, name):
        self.connection = connection
        connection.execute(REGISTER, {"name": name})
        (self.consumer,) = connection.execute(NUMBER, {"name": name}).fetchone()
        self.maintain()

    def maintain(self):
        """Makes the days ahead and drops those past retention: at least once a day."""
        self.oldest, self.newest = self.connection.execute(MAINTAIN).fetchone()
        self.maintained = time.monotonic()

    def take(self, message, handle):
        """Has it handled, unless it was before; committed when this returns, and only then."""
        if time.monotonic() - self.maintained > HOUR or not self._keeps(message):
            self.maintain()
        with self.connection.transaction():
            if not self._keeps(message):
                # Whether it has taken effect is not known: a person decides.
                if self._run(BURIED, message).fetchone() is None:
                    message.unclaimed = True
                    self._bury(message, "outside-window", f"the inbox keeps {self.oldest} to {self.newest}")
                return
            is_new, waits = self._run(CLAIM, message).fetchone()
            if is_new and waits:
                self._run(WAIT, message)
            elif is_new:
                self._settle(message, handle)

    def take_replayed(self, handle):
        """Has one handled that `outbox-relay inbox dead-letters replay` has put here; False if none is due."""
        with self.connection.transaction():
            due = self.connection.execute(DUE, {"consumer": self.consumer}).fetchone()
            if due is None:
                return False
            of = {"consumer": self.consumer, "lane": due[0]}
            row = self.connection.cursor(row_factory=dict_row).execute(TAKE, of).fetchone()
            if row is not None:
                message = Message(**row)
                # A copy may have come since its day is kept.
                claims = message.unclaimed and self._keeps(message)
                if not claims or self._run(CLAIM, message).fetchone()[0]:
                    self._settle(message, handle)
            self.connection.execute(FREE, of)
            return True

    def _keeps(self, message):
        return self.oldest <= message.day <= self.newest

    def _settle(self, message, handle):
        try:
            # A savepoint: what a handler did before it failed is undone, and that the message has come is not.
            with self.connection.transaction():
                handle(self.connection, message)
        except Exception as error:
            if is_trouble(error):
                raise
            if isinstance(error, Refused):
                code = error.code
            elif isinstance(error, psycopg.Error):
                code = f"sqlstate-{error.sqlstate or 'none'}"
            else:
                code = type(error).__name__
            self._bury(message, code, str(error))

    def _bury(self, message, code, error):
        self._run(BURY, message, code=code, error=error.replace("\0", "")[:1000])

    def _run(self, statement, message, **more):
        of = vars(message) | {"consumer": self.consumer, "headers": Jsonb(message.headers)}
        return self.connection.execute(statement, of | more)


def is_trouble(error):
    """Of the database and not of the message: it is tried again for as long as that lasts."""
    # 54: too long for an index, too deep, and the like. That is the message's.
    return isinstance(error, psycopg.OperationalError) and not (error.sqlstate or "").startswith("54")
