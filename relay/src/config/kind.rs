//! The kinds of sinks, by their names in settings.

/// Where records go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Topics of Kafka.
    Kafka,
    /// Lines of a file.
    File,
    /// Lines of standard output.
    Stdout,
    /// Subjects of a stream of NATS JetStream.
    Nats,
    /// Exchanges of RabbitMQ.
    Rabbit,
    /// Queues of Amazon SQS.
    Sqs,
    /// Topics of Amazon SNS.
    Sns,
    /// Topics of Apache Pulsar.
    Pulsar,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 8] = [
        Kind::Kafka,
        Kind::File,
        Kind::Stdout,
        Kind::Nats,
        Kind::Rabbit,
        Kind::Sqs,
        Kind::Sns,
        Kind::Pulsar,
    ];

    /// As settings have it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Kafka => "kafka",
            Kind::File => "file",
            Kind::Stdout => "stdout",
            Kind::Nats => "nats",
            Kind::Rabbit => "rabbitmq",
            Kind::Sqs => "sqs",
            Kind::Sns => "sns",
            Kind::Pulsar => "pulsar",
        }
    }
}
