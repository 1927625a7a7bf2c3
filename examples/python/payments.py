"""The same service as `payments`, without Rust: takes the money for each order, once, and says so. From Kafka.

`python payments.py POSTGRES_URL BROKERS`, until Ctrl-C or SIGTERM. One message after the other; for more at once, start more
processes, each with a group.instance.id of its own.
"""

import datetime
import json
import logging
import signal
import sys
import time

import psycopg
from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaException

from inbox import Inbox, Refused, message

SHOP = 0
GIVE = "update accounts set balance_cents = balance_cents + %s where id = %s"
PAID = "insert into payments (order_id, amount_cents) values (%s, %s)"
PUBLISH = "select outbox.publish(topic => 'payments', key => %s, type => 'OrderPaid', payload => %s::jsonb)"


def take(connection, message):
    """All of it happens, and once for each order, or nothing: whatever crashes, and however often the message comes."""
    try:
        placed = json.loads(message.payload)
        order, customer, cents = placed["order"], placed["customer"], placed["amount_cents"]
    except (TypeError, ValueError, KeyError) as error:
        raise Refused("undecodable", repr(error)) from error
    if connection.execute(GIVE, (-cents, customer)).rowcount == 0:
        raise Refused("unknown-customer", f"customer {customer}")
    connection.execute(GIVE, (cents, SHOP))
    connection.execute(PAID, (order, cents))
    connection.execute(PUBLISH, (str(customer), json.dumps({"order": order, "amount_cents": cents})))


def of(record):
    kind, ms = record.timestamp()
    at = None if kind == TIMESTAMP_NOT_AVAILABLE else datetime.datetime.fromtimestamp(ms / 1000, datetime.timezone.utc)
    at = {"produced_at" if kind == TIMESTAMP_CREATE_TIME else "stored_at": at}
    place = record.topic(), record.partition(), record.offset()
    return message(*place, record.key(), record.value(), record.headers() or [], **at)


def main(database, brokers):
    running = True

    def stop(*_):
        nonlocal running
        running = False

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    consumer = Consumer({
        "bootstrap.servers": brokers,
        "group.id": "payments",
        # Of this process: one that died and is back has its partitions at once.
        "group.instance.id": "payments-1",
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
        # An offset is committed when its message is: below, by store_offsets.
        "enable.auto.offset.store": False,
        "auto.commit.interval.ms": 1000,
    })
    consumer.subscribe(["orders"])
    record = None
    while running:
        try:
            with psycopg.connect(database, autocommit=True) as connection:
                inbox = Inbox(connection, "payments/take")
                looked = 0
                while running:
                    if time.monotonic() - looked > 0.5:
                        while running and inbox.take_replayed(take):
                            pass
                        looked = time.monotonic()
                    # One that is not finished, as the database was away, comes before others.
                    record = record or consumer.poll(0.5)
                    if record is None:
                        continue
                    if record.error():
                        if record.error().fatal():
                            raise KafkaException(record.error())
                        logging.warning("%s", record.error())
                    else:
                        if (found := of(record)) is not None:
                            inbox.take(found, take)
                        else:
                            logging.warning("%s/%d@%d is left out: it has no id", record.topic(), record.partition(), record.offset())
                        consumer.store_offsets(record)
                    record = None
        except psycopg.OperationalError as error:
            logging.warning("trying again: %s", error)
            time.sleep(1)
    consumer.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if len(sys.argv) != 3:
        sys.exit("usage: payments.py POSTGRES_URL BROKERS")
    main(*sys.argv[1:])
