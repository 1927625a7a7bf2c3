//! A file, with progress in the database.

use std::{fs, path::PathBuf};

use outbox_harness::{Harness, file, proxy::Proxy, relay::Settings, topic::Record};

use super::kind::{Can, Fence, Kind, PARTITIONS};

pub(crate) struct File {
    folder: PathBuf,
    away: PathBuf,
    path: PathBuf,
}

impl Kind for File {
    /// A file is no broker: a topic is a word in a line, which can't be missing, and a line has no limit.
    const CAN: Can = Can {
        one_step: false,
        refuses: &[],
        record_bytes: None,
        lines_in_headers: true,
        fence: Fence::Session,
    };

    async fn make(t: &Harness, _: bool) -> Self {
        let (folder, away) = (t.dir().join("records"), t.dir().join("away"));
        fs::create_dir(&folder).expect("a folder");
        let path = folder.join("records.jsonl");
        File { folder, away, path }
    }

    fn settings(&self, base: Settings) -> Settings {
        base.to("file").set("sink.file.path", self.path.to_str().expect("UTF-8"))
    }

    fn destination(&self) -> &'static str {
        "orders"
    }

    async fn found(&self) -> Vec<Record> {
        file::records(&self.path, PARTITIONS)
    }

    async fn assert_durable(&self, records: usize) {
        assert!(file::records(&self.path, PARTITIONS).len() >= records);
        assert_eq!(file::not_on_disk(&self.path), 0, "bytes of the file are in memory alone");
    }

    fn line(&self) -> Option<&Proxy> {
        None
    }

    fn take_away(&self) {
        fs::rename(&self.folder, &self.away).expect("renamed");
    }

    fn give_back(&self) {
        fs::rename(&self.away, &self.folder).expect("renamed");
    }
}
