"""A Kafka broker in a process of its own: librdkafka's mock cluster, which speaks the real protocol and keeps messages.

Prints its address and lives until its standard input is closed.
"""

import sys

from confluent_kafka import Producer


def main() -> None:
    producer = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
    brokers = producer.list_topics(timeout=10).brokers.values()
    sys.stdout.write(",".join(f"{broker.host}:{broker.port}" for broker in brokers) + "\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
