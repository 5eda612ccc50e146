//! The async calls with a real agent, and with one that is silent.

use std::time::Duration;

use qga_client::protocol::session::Ping;
use qga_client::{AsyncAgent, Error};
use qga_compliance::{Agent, Subject};
use serde_json::{Value, json};
use tokio::net::UnixStream;

async fn connect(agent: &Agent) -> AsyncAgent<UnixStream> {
    let stream = UnixStream::connect(agent.directory().join("socket")).await.unwrap();
    let mut agent = AsyncAgent::new(stream);
    agent.sync().await.unwrap();
    agent
}

#[tokio::test]
async fn calls_programs_and_files_work_as_in_the_blocking_client() {
    let host = Agent::start(&Subject::under_test(), &[]).unwrap();
    if !host.is_local() {
        return;
    }
    let mut agent = connect(&host).await;
    agent.call(&Ping {}).await.unwrap();
    agent.start("guest-sync", json!({ "id": 1 })).await.unwrap();
    agent.start("guest-sync", json!({ "id": 2 })).await.unwrap();
    assert_eq!(agent.receive_reply::<i64>("guest-sync").await.unwrap(), 1);
    assert_eq!(agent.receive_reply::<i64>("guest-sync").await.unwrap(), 2);

    let output = agent.run("sh", &["-c", "cat; exit 4"], Some(b"given")).await.unwrap();
    assert_eq!((output.exit.to_string().as_str(), output.stdout.as_slice()), ("exit code 4", b"given".as_slice()));

    let enough = Duration::from_secs(60);
    let output = agent.run_within("echo", &["here"], None, enough).await.unwrap().expect("it ends");
    assert_eq!(output.stdout, b"here\n");
    let given_up = agent.run_within("sleep", &["3"], None, Duration::from_millis(20)).await.unwrap();
    assert_eq!(given_up, None);
    agent.call(&Ping {}).await.expect("the conversation goes on");

    let content: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let path = host.directory().join("file").to_str().unwrap().to_owned();
    agent.write_file(&path, &content).await.unwrap();
    assert!(agent.read_file(&path).await.unwrap() == content);
    let refused = agent.read_file("/nonexistent").await.unwrap_err();
    assert!(refused.agent().is_some(), "{refused}");
}

#[tokio::test]
async fn silence_has_an_end() {
    let (near, _far) = tokio::io::duplex(4096);
    let mut agent = AsyncAgent::new(near);
    agent.set_silence(Duration::from_millis(20));
    assert!(matches!(agent.call_raw("guest-ping", Value::Null).await, Err(Error::TimedOut { .. })));
}
