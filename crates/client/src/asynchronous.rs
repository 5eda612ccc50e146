//! The same calls as async functions, over the same [`Conversation`].

use std::io;
use std::time::{Duration, Instant};

use qga_protocol::exec::Status;
use qga_protocol::{Command, file};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use crate::conversation::{Conversation, SYNC, Ticket, parse_reply};
use crate::error::Error;
use crate::file::{READ, WRITE, read_reply, write_arguments, write_reply};
use crate::lines::Limits;
use crate::patience::Patience;
use crate::program::{Output, Program};
use crate::stream::Timeouts;

/// Bytes of a file in one message.
const PIECE_BYTES: usize = 1 << 20;

/// An agent over an async stream, with the calls of [`Agent`](crate::Agent).
///
/// A call whose future is dropped half-way leaves its reply under way: [`sync`](Self::sync) must come before the next.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let stream = tokio::net::UnixStream::connect("/run/vm/agent.sock").await?;
/// let mut agent = qga_client::AsyncAgent::new(stream);
/// agent.sync().await?;
/// println!("{}", agent.run("uname", &["-r"], None).await?.exit);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AsyncAgent<S> {
    stream: S,
    conversation: Conversation,
    silence: Duration,
    patience: Patience,
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncAgent<S> {
    /// Takes a stream that is connected to an agent.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            conversation: Conversation::default(),
            silence: Timeouts::default().silence,
            patience: Patience::default(),
        }
    }

    /// Changes how long the agent may be silent.
    pub fn set_silence(&mut self, silence: Duration) {
        self.silence = silence;
    }

    /// Changes how often it is asked after programs.
    pub fn set_patience(&mut self, patience: Patience) {
        self.patience = patience;
    }

    /// Changes how much is taken from the agent before giving up.
    pub fn set_limits(&mut self, limits: Limits) {
        self.conversation.set_limits(limits);
    }

    /// Brings both sides to the same point; see [`Agent::sync`](crate::Agent::sync).
    pub async fn sync(&mut self) -> Result<(), Error> {
        self.conversation.begin_sync();
        loop {
            self.flush(SYNC).await?;
            if self.conversation.poll_sync()? {
                return Ok(());
            }
            if self.conversation.outgoing().is_empty() {
                self.receive_more(SYNC).await?;
            }
        }
    }

    /// Calls a command by its type.
    pub async fn call<C>(&mut self, command: &C) -> Result<C::Reply, Error>
    where
        C: Command,
        C::Reply: DeserializeOwned,
    {
        let name = C::INFO.name;
        let arguments = (!C::INFO.arguments.is_empty()).then_some(command);
        let ticket = self.conversation.request(name, arguments)?;
        self.flush(name).await?;
        parse_reply(name, self.receive(name, Some(ticket)).await?)
    }

    /// Calls a command by its name. `Value::Null` sends no arguments.
    pub async fn call_raw(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        self.start(command, arguments).await?;
        self.receive_reply(command).await
    }

    /// Sends a command and does not wait for the answer.
    pub async fn start(&mut self, command: &str, arguments: Value) -> Result<(), Error> {
        self.conversation.request(command, (!arguments.is_null()).then_some(arguments))?;
        self.flush(command).await
    }

    /// Receives the answer to the oldest command that was started and not answered.
    pub async fn receive_reply<R: DeserializeOwned>(&mut self, command: &str) -> Result<R, Error> {
        parse_reply(command, self.receive(command, None).await?)
    }

    /// Runs a program to its end and returns what it wrote. `input`, if any, is what it reads.
    pub async fn run(&mut self, program: &str, arguments: &[&str], input: Option<&[u8]>) -> Result<Output, Error> {
        let pid = self.start_program(&Program::captured(program, arguments, input)).await?;
        let mut pauses = self.patience.pauses();
        loop {
            if let Some(output) = self.program_output(pid).await? {
                return Ok(output);
            }
            sleep(pauses.next(None)).await;
        }
    }

    /// As [`run`](Self::run), but gives up after `patience`: `None`. The program is left as it is, and unlike by dropping
    /// the future the next call can be made at once.
    pub async fn run_within(
        &mut self,
        program: &str,
        arguments: &[&str],
        input: Option<&[u8]>,
        patience: Duration,
    ) -> Result<Option<Output>, Error> {
        let deadline = Instant::now().checked_add(patience);
        let pid = self.start_program(&Program::captured(program, arguments, input)).await?;
        let mut pauses = self.patience.pauses();
        loop {
            if let Some(output) = self.program_output(pid).await? {
                return Ok(Some(output));
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(None);
            }
            sleep(pauses.next(deadline)).await;
        }
    }

    /// Starts a program and returns its number in the guest.
    pub async fn start_program(&mut self, program: &Program) -> Result<i64, Error> {
        self.call(&program.command()).await.map(|started| started.pid)
    }

    /// What a program left, or `None` while it runs. The agent gives it out once.
    pub async fn program_output(&mut self, pid: i64) -> Result<Option<Output>, Error> {
        Output::of(self.call(&Status { pid }).await?)
    }

    /// Reads a whole file of the guest into memory.
    pub async fn read_file(&mut self, path: &str) -> Result<Vec<u8>, Error> {
        let mut content = Vec::new();
        self.copy_from_guest(path, &mut content).await?;
        Ok(content)
    }

    /// Writes a whole file in the guest; one that exists is replaced.
    pub async fn write_file(&mut self, path: &str, mut content: &[u8]) -> Result<(), Error> {
        self.copy_to_guest(path, &mut content).await.map(|_| ())
    }

    /// Copies a file of the guest to a writer. Returns the number of bytes.
    pub async fn copy_from_guest(&mut self, path: &str, target: &mut (impl AsyncWrite + Unpin)) -> Result<u64, Error> {
        let act = format!("copy {path} from the guest");
        let handle = self.open(path, "r").await?;
        let copied = self.read_to_end(handle, &act, target).await;
        self.close_after(handle, copied).await
    }

    /// Copies a reader's bytes to a file in the guest; one that exists is replaced. Returns the number of bytes.
    pub async fn copy_to_guest(&mut self, path: &str, source: &mut (impl AsyncRead + Unpin)) -> Result<u64, Error> {
        let act = format!("copy to {path} in the guest");
        let handle = self.open(path, "w").await?;
        let copied = self.write_all_of(handle, &act, source).await;
        self.close_after(handle, copied).await
    }

    async fn open(&mut self, path: &str, mode: &str) -> Result<i64, Error> {
        self.call(&file::Open { path: path.to_owned(), mode: Some(mode.to_owned()) }).await
    }

    async fn read_to_end(
        &mut self,
        handle: i64,
        act: &str,
        target: &mut (impl AsyncWrite + Unpin),
    ) -> Result<u64, Error> {
        let local = |source| Error::Local { act: act.to_owned(), source };
        let request = file::Read { handle, count: Some(PIECE_BYTES as i64) };
        let mut piece = Vec::new();
        let mut copied = 0;
        loop {
            let ticket = self.conversation.request(READ, Some(&request))?;
            self.flush(READ).await?;
            piece.clear();
            let mut take = |bytes: &[u8]| {
                piece.extend_from_slice(bytes);
                Ok(())
            };
            let (size, eof) = read_reply(self.receive(READ, Some(ticket)).await?, act, Some(&mut take))?;
            target.write_all(&piece).await.map_err(local)?;
            copied += size as u64;
            if eof {
                target.flush().await.map_err(local)?;
                return Ok(copied);
            }
            if size == 0 {
                let problem = "neither bytes nor the end of the file came: it has nothing to give now";
                return Err(Error::reply(READ, problem, b""));
            }
        }
    }

    async fn write_all_of(
        &mut self,
        handle: i64,
        act: &str,
        source: &mut (impl AsyncRead + Unpin),
    ) -> Result<u64, Error> {
        let mut buffer = vec![0; PIECE_BYTES];
        let mut copied = 0;
        loop {
            let read = source.read(&mut buffer).await;
            let size = read.map_err(|source| Error::Local { act: act.to_owned(), source })?;
            if size == 0 {
                return Ok(copied);
            }
            let mut bytes = &buffer[..size];
            while !bytes.is_empty() {
                let ticket = self.conversation.request_with(WRITE, |text| {
                    write_arguments(text, handle, bytes);
                    Ok(())
                })?;
                self.flush(WRITE).await?;
                bytes = &bytes[write_reply(self.receive(WRITE, Some(ticket)).await?, bytes.len())?..];
            }
            copied += size as u64;
        }
    }

    async fn close_after<R>(&mut self, handle: i64, result: Result<R, Error>) -> Result<R, Error> {
        let closed = match &result {
            // A reply may be under way still, and would be taken for the answer to this.
            Err(error) if error.needs_sync() => Ok(()),
            _ => self.call(&file::Close { handle }).await.map(|_| ()),
        };
        let value = result?;
        closed.map(|()| value)
    }

    async fn receive(&mut self, command: &str, ticket: Option<Ticket>) -> Result<&[u8], Error> {
        loop {
            if let Some(line) = self.conversation.poll_reply(command, ticket)? {
                return Ok(self.conversation.line(line));
            }
            self.receive_more(command).await?;
        }
    }

    async fn flush(&mut self, command: &str) -> Result<(), Error> {
        while !self.conversation.outgoing().is_empty() {
            let written = timeout(self.silence, self.stream.write(self.conversation.outgoing())).await;
            match self.in_time(command, written)? {
                Ok(0) => return Err(Error::Closed { command: command.to_owned() }),
                Ok(size) => self.conversation.sent(size),
                Err(source) => return Err(Error::send(command, source, None)),
            }
        }
        let flushed = timeout(self.silence, self.stream.flush()).await;
        self.in_time(command, flushed)?.map_err(|source| Error::send(command, source, None))
    }

    async fn receive_more(&mut self, command: &str) -> Result<(), Error> {
        let received = timeout(self.silence, self.stream.read(self.conversation.space())).await;
        match self.in_time(command, received)? {
            Ok(0) => Err(Error::Closed { command: command.to_owned() }),
            Ok(size) => {
                self.conversation.received(size);
                Ok(())
            }
            Err(source) => Err(Error::receive(command, source, None)),
        }
    }

    fn in_time<R>(
        &self,
        command: &str,
        done: Result<io::Result<R>, tokio::time::error::Elapsed>,
    ) -> Result<io::Result<R>, Error> {
        done.map_err(|_| Error::TimedOut { command: command.to_owned(), after: self.silence })
    }
}
