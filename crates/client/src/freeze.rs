//! A freeze that ends.

use std::thread;
use std::time::{Duration, Instant};

use qga_protocol::fsfreeze::{Freeze, FreezeList, FreezeStatus, Status, Thaw};

use crate::agent::{Agent, AnyAgent};
use crate::connect::ConnectOptions;
use crate::error::Error;
use crate::kind::Kind;
use crate::target::Target;
use crate::transport::Transport;

/// How a freeze guard reaches the agent anew: each thaw may need a new connection.
pub type Connect<'a> = Box<dyn FnMut() -> Result<AnyAgent, Error> + Send + 'a>;

const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A thaw is given so long at least, however little patience there is: it may have hooks to run.
const SHORTEST_TRY: Duration = Duration::from_secs(5);
/// A wait that no clock can count is this long.
const A_DAY: Duration = Duration::from_secs(24 * 3600);

/// The guest's file systems, held still. They are thawed when the guard goes, if not before; each try takes a new
/// connection when the one before has failed.
pub struct Frozen<'a> {
    connect: Connect<'a>,
    agent: Option<AnyAgent>,
    patience: Duration,
    count: u64,
    is_over: bool,
}

impl std::fmt::Debug for Frozen<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frozen").field("count", &self.count).field("is_over", &self.is_over).finish_non_exhaustive()
    }
}

impl<'a> Frozen<'a> {
    /// Freezes the file systems at the given mount points, all of them without a list.
    ///
    /// When the freeze fails in whatever way, thawing is tried before the error is returned: an agent that answered too
    /// late has frozen all the same.
    ///
    /// ```no_run
    /// use qga_client::{Frozen, Timeouts};
    ///
    /// let frozen = Frozen::at(&"libvirt:db".parse()?, Timeouts::default(), None)?;
    /// // Take the snapshot here.
    /// frozen.thaw()?;
    /// # Ok::<(), qga_client::Error>(())
    /// ```
    pub fn at(
        target: &Target,
        options: impl Into<ConnectOptions>,
        mountpoints: Option<&[String]>,
    ) -> Result<Frozen<'static>, Error> {
        let (target, options) = (target.clone(), options.into());
        let silence = options.timeouts.silence.min(A_DAY);
        let connect = move || Agent::connect_by(&target, options, Instant::now() + silence);
        Frozen::over(Box::new(connect), mountpoints)
    }

    /// As [`at`](Self::at), for an agent that is reached otherwise.
    pub fn over(connect: Connect<'a>, mountpoints: Option<&[String]>) -> Result<Self, Error> {
        Self::over_by(connect, mountpoints, None)
    }

    /// As [`over`](Self::over); a freeze that is not answered by `deadline` has failed, also if the agent is never silent.
    pub fn over_by(
        mut connect: Connect<'a>,
        mountpoints: Option<&[String]>,
        deadline: Option<Instant>,
    ) -> Result<Self, Error> {
        let mut agent = connect()?;
        agent.set_deadline(deadline);
        // Whoever froze it will thaw it; a second guard would thaw too early.
        if agent.call(&Status {})? == FreezeStatus::Frozen {
            let act = "freeze the file systems".to_owned();
            return Err(Error::Guest { act, cause: "they are frozen already".to_owned() });
        }
        let patience = agent.patience().thaw;
        let mut frozen = Self { connect, agent: Some(agent), patience, count: 0, is_over: false };
        let count = frozen.agent().and_then(|agent| match mountpoints {
            None => agent.call(&Freeze {}),
            Some(list) => agent.call(&FreezeList { mountpoints: Some(list.to_vec()) }),
        });
        if count.as_ref().is_err_and(Error::needs_sync) {
            frozen.agent = None;
        }
        match count {
            // The command did not even begin: what is frozen now was frozen by somebody else, who counts on it.
            Err(error) if matches!(error.kind(), Kind::CommandRefused | Kind::NoSuchCommand) => {
                frozen.is_over = true;
                Err(error)
            }
            Ok(count) => {
                if let Some(agent) = &mut frozen.agent {
                    agent.set_deadline(None);
                }
                frozen.count = u64::try_from(count).unwrap_or_default();
                Ok(frozen)
            }
            Err(error) => Err(frozen.undo(error)),
        }
    }

    /// Thaws after a freeze that failed. The error says so if the guest may be frozen all the same.
    fn undo(mut self, error: Error) -> Error {
        match self.thaw_with_patience() {
            Err(thaw) if !matches!(self.still_holds(), Ok(false)) => {
                Error::StillFrozen { source: Box::new(error), thaw: Box::new(thaw) }
            }
            _ => error,
        }
    }

    /// How many file systems are frozen.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Changes for how long thawing is tried; without, the agent's [`Patience::thaw`](crate::Patience::thaw) says it.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Whether the agent still holds them: it may have given up by itself (Windows does after 10 seconds).
    pub fn still_holds(&mut self) -> Result<bool, Error> {
        let deadline = Instant::now().checked_add(self.patience);
        let agent = self.agent()?;
        agent.set_deadline(deadline);
        let status = agent.call(&Status {});
        if status.as_ref().is_err_and(Error::needs_sync) {
            self.agent = None;
        }
        Ok(status? == FreezeStatus::Frozen)
    }

    /// Thaws, and returns how many were thawed. It is tried until it succeeds or the patience is over; then the error of
    /// the last try is returned.
    pub fn thaw(mut self) -> Result<u64, Error> {
        self.thaw_with_patience()
    }

    /// Leaves them frozen, and returns how many they are: somebody else will thaw them.
    #[must_use]
    pub fn leave(mut self) -> u64 {
        self.is_over = true;
        self.count
    }

    fn thaw_with_patience(&mut self) -> Result<u64, Error> {
        let started = Instant::now();
        let mut pause = Duration::from_millis(50);
        self.is_over = true;
        loop {
            // One that always says a little is tried again over another connection, as one that is silent.
            let deadline = Instant::now().checked_add(self.patience.max(SHORTEST_TRY));
            let thawed = self.agent().and_then(|agent| {
                agent.set_deadline(deadline);
                agent.call(&Thaw {})
            });
            let error = match thawed {
                Ok(count) => return Ok(u64::try_from(count).unwrap_or_default()),
                Err(error) => error,
            };
            // An agent may report an error and have thawed all the same: a hook that failed.
            if error.agent().is_some() && matches!(self.still_holds(), Ok(false)) {
                return Err(error);
            }
            self.agent = None;
            if started.elapsed() >= self.patience {
                return Err(error);
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn agent(&mut self) -> Result<&mut Agent<Box<dyn Transport + Send>>, Error> {
        let agent = match self.agent.take() {
            Some(agent) => agent,
            None => (self.connect)()?,
        };
        Ok(self.agent.insert(agent))
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            // There is nobody left to hear of an error, and nothing left to try.
            let _ = self.thaw_with_patience();
        }
    }
}
