//! Files, standard output, and the table that progress is in beside them.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use outbox_harness::{Harness, check, event::Event, file, wait};

use super::{obey, says, typed};
use crate::{
    file::{all_written, to_file},
    remedies, words,
};

/// Waits until all that is committed is in these files.
async fn all_in(t: &Harness, paths: &[&Path]) {
    let truth = t.committed().await;
    wait::until("all is in the files", wait::PATIENCE, || async {
        let found: Vec<_> = paths.iter().flat_map(|path| file::records(path, 8)).collect();
        let count = check::compare(&truth, &found, 8);
        if count.lost == 0 { Ok(count) } else { Err(count.to_string()) }
    })
    .await
    .expect("it is")
    .assert_at_least_once();
}

#[tokio::test]
async fn whatever_is_wrong_with_the_file_is_fixed_as_the_halt_says_and_loses_no_line() {
    let mut t = Harness::start().await;
    let (settings, _) = to_file(&t);
    let (folder, moved) = (t.dir().join("events"), t.dir().join("moved"));
    let (path, older) = (folder.join("lines"), folder.join("older"));
    std::fs::create_dir(&folder).expect("created");
    let settings = settings.set("sink.file.path", path.to_str().expect("UTF-8"));
    let mut relay = settings.clone().start().await;
    t.commit([Event::to("orders").key("a")]).await;
    all_in(&t, &[&path]).await;

    std::fs::rename(&folder, &moved).expect("renamed");
    t.commit([Event::to("orders").key("a")]).await;
    says(&relay, "create its folder").await;
    std::fs::create_dir(&folder).expect("created");
    relay.wait_ready().await;
    all_in(&t, &[&moved.join("lines"), &path]).await;

    // An administrator's note, without an end.
    assert!(relay.sigterm().await.success());
    let lines = std::fs::read_to_string(&path).expect("lines");
    std::fs::write(&path, format!("{lines}moved by me")).expect("written");
    t.commit([Event::to("orders").key("a")]).await;
    relay.restart();
    says(&relay, "ends in a line that is not whole and that no relay wrote").await;
    assert_eq!(std::fs::read_to_string(&path).expect("lines"), format!("{lines}moved by me"));
    std::fs::write(&path, lines).expect("written");
    relay.wait_ready().await;
    all_in(&t, &[&moved.join("lines"), &path]).await;

    std::fs::rename(&path, &older).expect("renamed");
    std::fs::create_dir(&path).expect("created");
    t.commit([Event::to("orders").key("a")]).await;
    says(&relay, "set sink.file.path to a file").await;
    std::fs::remove_dir(&path).expect("removed");
    relay.wait_ready().await;
    all_in(&t, &[&moved.join("lines"), &older, &path]).await;

    assert!(relay.sigterm().await.success());
    let pipe = pipe(&t);
    let mut to_pipe = settings.set("sink.file.path", pipe.to_str().expect("UTF-8")).spawn();
    t.commit([Event::to("orders").key("a")]).await;
    let detail = says(&to_pipe, "is not a regular file; nothing is published").await;
    assert!(detail.contains("set sink.file.path to a file"), "{detail}");
    assert!(to_pipe.sigterm().await.success());
    relay.restart();
    relay.wait_ready().await;
    all_in(&t, &[&moved.join("lines"), &older, &path]).await;
}

/// A named pipe.
fn pipe(t: &Harness) -> PathBuf {
    let pipe = t.dir().join("pipe");
    let name = std::ffi::CString::new(pipe.to_str().expect("UTF-8")).expect("no NUL");
    // SAFETY: a path that ends in NUL, and a mode.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0, "a pipe");
    pipe
}

/// As on a full disk: the system refuses a line in its middle. The relay's log may not grow either.
#[tokio::test]
async fn a_file_that_may_not_grow_is_named_and_gets_every_line_once_it_may() {
    let mut t = Harness::start().await;
    let (settings, path) = to_file(&t);
    let mut relay = settings.start().await;
    let events = || ["a", "b", "a"].map(|key| Event::to("orders").key(key));
    t.commit(events()).await;
    all_written(&t, &path).await;
    let bytes = std::fs::metadata(&path).expect("a file").len();
    words::limit(&relay, &format!("--fsize={}:", bytes + bytes / 2));
    t.commit(events()).await;
    wait::until("the relay says what to do", wait::PATIENCE, || async {
        let page = relay.try_status().await.map_err(|error| error.to_string())?.to_string();
        match page.contains("free space there, or raise the limit") {
            true => Ok(()),
            false => Err(page),
        }
    })
    .await
    .expect("it does");
    words::limit(&relay, "--fsize=unlimited:");
    relay.wait_ready().await;
    t.commit(events()).await;
    all_in(&t, &[&path]).await;
    assert!(relay.sigterm().await.success());
}

/// Such as a folder that another program has put in order.
#[tokio::test]
async fn a_file_that_can_not_be_opened_is_named_with_the_systems_words_and_gets_every_line_once_it_can()
 {
    let mut t = Harness::start().await;
    let (settings, path) = to_file(&t);
    let older = path.with_extension("older");
    let mut relay = settings.start().await;
    let events = || ["a", "b", "a"].map(|key| Event::to("orders").key(key));
    t.commit(events()).await;
    all_written(&t, &path).await;
    std::fs::rename(&path, &older).expect("renamed");
    // A link that leads to itself.
    std::os::unix::fs::symlink(&path, &path).expect("a link");
    t.commit(events()).await;
    let told = format!("writing {}: Too many levels of symbolic links", path.display());
    wait::until("the relay says so", wait::PATIENCE, || async {
        let status = relay.try_status().await.map_err(|error| error.to_string())?;
        match status["detail"].as_str() {
            Some(why) if why.contains(&told) && status["phase"] == "retrying" => Ok(()),
            _ => Err(status.to_string()),
        }
    })
    .await
    .expect("it does");
    std::fs::remove_file(&path).expect("removed");
    relay.wait_ready().await;
    t.commit(events()).await;
    all_in(&t, &[&older, &path]).await;
    assert!(relay.sigterm().await.success());
}

#[tokio::test]
async fn a_table_of_progress_that_was_dropped_is_made_again_and_the_slot_has_the_rest() {
    let mut t = Harness::start().await;
    let (settings, path) = to_file(&t);
    let mut relay = settings.clone().start().await;
    t.commit([Event::to("orders").key("a")]).await;
    all_written(&t, &path).await;
    assert!(relay.sigterm().await.success());
    t.commit([Event::to("orders").key("a"), Event::to("orders").key("b")]).await;
    obey(&t, "drop table outbox.progress").await;
    relay.restart();
    let detail = says(&relay, "outbox.progress").await;
    obey(&t, typed(&detail, "outbox-relay migrate")).await;
    let detail = says(&relay, "outbox.progress has no row of this relay").await;
    remedies::obey(&settings, &detail, 0).await;
    relay.wait_ready().await;
    t.commit([Event::to("orders").key("a")]).await;
    let records = all_written(&t, &path).await;
    // "Everything after the slot's position": that may lie before what was written.
    check::compare(&t.committed().await, &records, 8).assert_at_least_once();
}

/// A pipe whose reader ends, such as `outbox-relay run | jq`.
#[tokio::test]
async fn whoever_read_standard_output_may_go_and_another_gets_what_it_did_not_see() {
    const NONBLOCK: i32 = libc::O_NONBLOCK;
    let mut t = Harness::start().await;
    let (settings, path) = to_file(&t);
    let settings = settings.set("sink.kind", "stdout").without("sink.file.path");
    let pipe = pipe(&t);
    let reader = OpenOptions::new().read(true).custom_flags(NONBLOCK).open(&pipe).expect("open");
    let mut relay = settings.clone().stdout(&pipe).start().await;
    drop::<File>(reader);
    // A process that another test is starting has its copy until it runs another program.
    wait::until("no one reads the pipe", wait::PATIENCE, || async {
        match OpenOptions::new().write(true).custom_flags(NONBLOCK).open(&pipe) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
            opened => Err(format!("{opened:?}")),
        }
    })
    .await
    .expect("it is closed");
    t.commit([Event::to("orders").key("a"), Event::to("orders").key("b")]).await;
    says(&relay, "whoever read standard output has gone").await;
    // "Start the relay again with a reader".
    relay.kill9().await;
    let mut relay = settings.stdout(&path).start().await;
    let records = all_written(&t, &path).await;
    check::compare(&t.committed().await, &records, 8).assert_exactly_once();
    assert!(relay.sigterm().await.success());
}
