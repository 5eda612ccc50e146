//! `qga top`: a guest's processors, memory, disks and network on a full screen, with where they come from.

mod screen;
mod state;

use std::io::{self, IsTerminal};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use qga_client::{Agent, AnyAgent, ConnectOptions, Target};
use qga_protocol::identity::GetHostName;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use super::guest;
use super::sample::{self, Sample};
use crate::arguments::Top;
use crate::exit_code::Code;
use crate::failure::{Failure, Result};
use crate::general_options::General;
use crate::interrupts::Interrupts;
use crate::output::{Page, terminal_columns};
use crate::visit::optional;

use state::State;

/// How often the keyboard is asked.
const TICK: Duration = Duration::from_millis(100);

/// What the thread that asks the guest has to say.
enum News {
    Sample(Box<Sample>),
    /// It could not be asked, and is tried again.
    Problem(String),
}

pub fn run(options: &Top, target: &Target, general: &General) -> Result<()> {
    if general.json {
        return Err(Failure::told(
            Code::Usage,
            "top is for people and has no JSON",
            "'qga metrics' prints the same numbers for programs.",
        ));
    }
    if !io::stdout().is_terminal() || std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb") {
        return print(options, target, general);
    }
    // The first look is taken before the screen changes, so that its failure can be read.
    let mut agent = Agent::connect(target, general.connection())?;
    let mut state = State::new(title(&mut agent, target)?, options.interval);
    state.hear(sample::take(&mut agent)?);

    let (news_sender, news) = channel();
    let (stop, stopped) = channel();
    let (interval, connection, target) = (options.interval, general.connection(), target.clone());
    thread::spawn(move || watch(agent, &target, connection, interval, &news_sender, &stopped));

    let interrupts = Interrupts::watch()?;
    let mut terminal = ratatui::try_init().map_err(|error| Failure::host("set the terminal up", &error))?;
    let shown = show(&mut terminal, &mut state, &news, &interrupts, options.count);
    ratatui::restore();
    drop(stop);
    shown.map_err(|error| Failure::host("draw on the terminal", &error))
}

/// Prints the screen as text, one below the other, where nothing can be drawn over: in a pipe, on a plain terminal.
fn print(options: &Top, target: &Target, general: &General) -> Result<()> {
    let mut agent = Agent::connect(target, general.connection())?;
    let mut state = State::new(title(&mut agent, target)?, options.interval);
    let mut looks = 0;
    loop {
        state.hear(sample::take(&mut agent)?);
        looks += 1;
        let mut page = Page::new(target.to_string(), None, false);
        let (columns, rows) = (terminal_columns().unwrap_or(100), 60);
        screen::text(&state, columns, rows).iter().try_for_each(|line| page.line(line))?;
        if options.count.is_some_and(|count| looks >= count) {
            return Ok(());
        }
        page.line("")?;
        thread::sleep(options.interval);
    }
}

fn title(agent: &mut AnyAgent, target: &Target) -> Result<String> {
    let name = optional(agent.call(&GetHostName {}))?.map_or_else(|| target.to_string(), |name| name.host_name);
    let system = guest::system(agent)?.and_then(|system| system.pretty_name);
    Ok(system.map_or_else(|| name.clone(), |system| format!("{name} · {system}")))
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    state: &mut State,
    news: &Receiver<News>,
    interrupts: &Interrupts,
    count: Option<u64>,
) -> io::Result<()> {
    loop {
        terminal.draw(|frame| screen::draw(frame, state))?;
        if count.is_some_and(|count| state.looks() >= count) || interrupts.count() > 0 {
            return Ok(());
        }
        if event::poll(TICK)?
            && let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
        {
            match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                KeyCode::Char(' ') => state.is_paused = !state.is_paused,
                _ => {}
            }
        }
        for heard in news.try_iter() {
            match heard {
                News::Sample(sample) if !state.is_paused => state.hear(*sample),
                News::Sample(_) => {}
                News::Problem(problem) => state.problem = Some(problem),
            }
        }
    }
}

/// Looks at the guest until told to stop; over a new connection when the old one has failed.
fn watch(
    agent: AnyAgent,
    target: &Target,
    connection: ConnectOptions,
    interval: Duration,
    news: &Sender<News>,
    stopped: &Receiver<()>,
) {
    let mut agent = Some(agent);
    while matches!(stopped.recv_timeout(interval), Err(RecvTimeoutError::Timeout)) {
        let taken = match agent.take() {
            Some(agent) => Ok(agent),
            None => Agent::connect(target, connection).map_err(Failure::from),
        };
        let taken = taken.and_then(|mut connected| {
            let sample = sample::take(&mut connected)?;
            agent = Some(connected);
            Ok(sample)
        });
        let heard = match taken {
            Ok(sample) => News::Sample(Box::new(sample)),
            Err(failure) => News::Problem(failure.text().unwrap_or_default()),
        };
        if news.send(heard).is_err() {
            return;
        }
    }
}
