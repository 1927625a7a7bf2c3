//! The examples through the relay, each killed with kill -9, as `examples/run` does it. Two services get every order, and one
//! gets on while the other is down.

use std::{path::Path, process::Command};

#[test]
fn the_books_balance_whatever_is_killed() {
    balance("kafka", "· out of order 0 ·");
}

#[test]
fn the_books_balance_on_nats_whatever_is_killed() {
    balance("nats", "");
}

#[test]
fn the_books_balance_on_rabbitmq_whatever_is_killed() {
    balance("rabbitmq", "· out of order 0 ·");
}

#[test]
fn the_books_balance_without_rust_whatever_is_killed() {
    balance("python", "· out of order 0 ·");
}

#[test]
fn the_consumer_without_rust_runs_the_statements_of_its_page() {
    let page = include_str!("../../docs/CONSUMER.md");
    let section = page.split("\n## ").find(|section| section.starts_with("Without Rust\n"));
    let program = include_str!("../python/inbox.py");
    let fences: Vec<&str> = section.expect("it is there").split("```").collect();
    let statements: Vec<&str> =
        fences.iter().filter_map(|fence| fence.strip_prefix("sql\n")).map(str::trim_end).collect();
    for statement in &statements {
        assert!(program.contains(statement), "the program has not: {statement}");
    }
    // And no others: each is a constant of its own.
    let in_program =
        program.lines().filter(|line| line.contains(" = \"") && !line.starts_with(" ")).count();
    assert_eq!(in_program, statements.len() + 1, "BURIED is told in words");
}

fn balance(broker: &str, also: &str) {
    // Cargo builds examples with the tests, beside the programs, and names their path nowhere.
    let books = Path::new(env!("CARGO_BIN_EXE_orders")).with_file_name("examples").join("books");
    let output = Command::new(books).args(["8", broker]).output().expect("it starts");
    let text =
        [output.stdout, output.stderr].map(|part| String::from_utf8_lossy(&part).into_owned());
    let text = text.concat();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert_eq!(text.matches("kill -9 of").count(), 8, "{text}");
    assert!(text.contains("· unshipped 0 · shipped twice 0 · wrong 0 ·"), "{text}");
    assert!(text.contains("dead letters 8, replayed"), "{text}");
    assert!(text.contains("· unpaid 0 · paid twice 0 · wrong 0 · out of order "), "{text}");
    assert!(text.contains(also), "{text}");
}
