//! Words, control messages, and the agent's bytes in both directions.

use std::io;

use super::control::{self, MESSAGE, Told};
use super::device::{AGENT_PORT, CONSOLE_PORT, Console, MAX_WAITING, queue};
use crate::context::{Context, Progress};
use crate::device::Fault;

/// Bytes of words that are taken from one chain; a kernel's lines are shorter.
const MAX_WORDS: usize = 4096;
/// Chains that are moved in one go, so that other devices have their turn.
const BURST: usize = 128;

impl Console {
    /// Hands the kernel's words on.
    pub(super) fn console_output(&mut self, context: &mut Context<'_>) -> Result<(), Fault> {
        let words = &mut self.words;
        context.process(queue::CONSOLE_OUT, |chain, turn| {
            if let Some(words) = words {
                let mut bytes = [0; MAX_WORDS];
                let length = chain.readable.copy_to(&mut bytes);
                words(bytes.get(..length).unwrap_or_default());
                turn.moved(length);
            }
            Ok(Progress::Done(0))
        })
    }

    /// Takes what the driver tells, and answers.
    pub(super) fn receive_control(&mut self, context: &mut Context<'_>) -> Result<(), Fault> {
        let mut told = Vec::new();
        context.process(queue::CONTROL_OUT, |chain, _| {
            let mut message = [0; MESSAGE];
            // Shorter ones say nothing.
            if chain.readable.copy_to(&mut message) == MESSAGE && told.len() < MAX_WAITING {
                told.push(control::parse(message));
            }
            Ok(Progress::Done(0))
        })?;
        for one in told {
            self.answer(one)?;
        }
        self.send_control(context)?;
        // It may have opened the port, or closed it.
        self.deliver(context)
    }

    fn answer(&mut self, told: Told) -> Result<(), Fault> {
        match told {
            Told::DeviceReady => {
                if self.words.is_some() {
                    self.queue_control(control::add(CONSOLE_PORT))?;
                }
                self.queue_control(control::add(AGENT_PORT))
            }
            Told::PortReady(CONSOLE_PORT) if self.words.is_some() => {
                self.queue_control(control::is_console(CONSOLE_PORT))?;
                self.queue_control(control::open(CONSOLE_PORT, true))
            }
            Told::PortReady(AGENT_PORT) => {
                self.queue_control(control::name(AGENT_PORT))?;
                self.queue_control(control::open(AGENT_PORT, !self.hung_up))
            }
            Told::PortOpen(AGENT_PORT, open) => {
                self.guest_open = open;
                Ok(())
            }
            Told::PortOpen(..) | Told::PortReady(_) | Told::Other => Ok(()),
        }
    }

    fn queue_control(&mut self, message: Vec<u8>) -> Result<(), Fault> {
        if self.waiting.len() >= MAX_WAITING {
            return Err(Fault::new(
                "the driver of the console asks and does not take the answers",
            ));
        }
        self.waiting.push_back(message);
        Ok(())
    }

    /// Sends what waits for the driver, as far as it has buffers.
    pub(super) fn send_control(&mut self, context: &mut Context<'_>) -> Result<(), Fault> {
        let waiting = &mut self.waiting;
        context.process(queue::CONTROL_IN, |chain, _| {
            let Some(message) = waiting.pop_front() else {
                return Ok(Progress::Later);
            };
            let written = chain.writable.copy_from(&message);
            Ok(Progress::Done(u32::try_from(written).unwrap_or(0)))
        })
    }

    /// Passes bytes from the socket to the guest.
    pub(super) fn deliver(&mut self, context: &mut Context<'_>) -> Result<(), Fault> {
        if !self.guest_open || self.hung_up {
            return Ok(());
        }
        for _ in 0..BURST {
            if context.turn().is_over() {
                context.again(queue::AGENT_IN);
                return Ok(());
            }
            let mut chains = context.take(queue::AGENT_IN, 1, 1)?;
            let Some(chain) = chains.pop() else {
                self.no_room = true;
                return Ok(());
            };
            if chain.writable.is_empty() {
                context.give_back(queue::AGENT_IN, chain.head, 0)?;
                continue;
            }
            match chain.writable.read_from(&self.agent) {
                Ok(0) => {
                    context.put_back(queue::AGENT_IN, 1);
                    return self.hang_up(context);
                }
                Ok(length) => {
                    context.turn().moved(length);
                    let length = u32::try_from(length).unwrap_or(u32::MAX);
                    context.give_back(queue::AGENT_IN, chain.head, length)?;
                }
                Err(error) => {
                    context.put_back(queue::AGENT_IN, 1);
                    if error.kind() == io::ErrorKind::WouldBlock {
                        return Ok(());
                    }
                    return self.hang_up(context);
                }
            }
        }
        Ok(())
    }

    /// Passes bytes from the guest to the socket.
    pub(super) fn collect(&mut self, context: &mut Context<'_>) -> Result<(), Fault> {
        let (agent, sent) = (&self.agent, &mut self.sent);
        let (mut full, mut gone) = (false, self.hung_up);
        context.process(queue::AGENT_OUT, |mut chain, turn| {
            if gone {
                return Ok(Progress::Done(0));
            }
            // A driver does not change a chain that it has given away; one that does has
            // changed its own stream.
            chain.readable.take_front(*sent);
            while !chain.readable.is_empty() {
                if turn.is_over() {
                    return Ok(Progress::Part(0));
                }
                match send(agent, &chain.readable) {
                    Ok(length) => {
                        turn.moved(length);
                        *sent += length;
                        chain.readable.take_front(length);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        full = true;
                        return Ok(Progress::Later);
                    }
                    Err(_) => {
                        gone = true;
                        break;
                    }
                }
            }
            *sent = 0;
            Ok(Progress::Done(0))
        })?;
        self.full = full;
        if gone && !self.hung_up {
            return self.hang_up(context);
        }
        Ok(())
    }

    /// The socket's other end is closed, which the guest is told.
    fn hang_up(&mut self, context: &mut Context<'_>) -> Result<(), Fault> {
        self.hung_up = true;
        self.full = false;
        self.queue_control(control::open(AGENT_PORT, false))?;
        self.send_control(context)
    }
}

/// Writes to the socket. The signal that a closed one would send is ignored by every Rust
/// program (`std`'s start-up code sets SIGPIPE so), so it is an error like others.
fn send(agent: &std::os::fd::OwnedFd, bytes: &crate::Buffers<'_>) -> io::Result<usize> {
    match bytes.write_to(agent) {
        Ok(0) => Err(io::ErrorKind::WriteZero.into()),
        other => other,
    }
}
