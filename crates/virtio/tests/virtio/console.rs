//! The kernel's words and the agent's stream.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use bulkhead_virtio::console::Console;
use bulkhead_virtio::testing::{BUFFERS, Driver, WRITE};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const CONSOLE_OUT: usize = 1;
const CONTROL_IN: usize = 2;
const CONTROL_OUT: usize = 3;
const AGENT_IN: usize = 4;
const AGENT_OUT: usize = 5;

type Heard = Arc<Mutex<Vec<u8>>>;

fn console() -> (Driver, UnixStream, Heard) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let heard = Heard::default();
    let words = {
        let heard = Arc::clone(&heard);
        Box::new(move |bytes: &[u8]| heard.lock().unwrap().extend_from_slice(bytes))
    };
    let device = Console::new(theirs.into(), Some(words)).unwrap();
    let mut driver = Driver::new(Box::new(device));
    driver.start(0, 64);
    (driver, ours, heard)
}

fn control(port: u32, event: u16, value: u16) -> Vec<u8> {
    let mut bytes = port.to_le_bytes().to_vec();
    bytes.extend(event.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    bytes
}

/// Offers rooms to a queue that the device fills; they are 256 bytes each.
fn offer(driver: &mut Driver, queue: usize, first: u16, count: u16) {
    let base = Driver::base(queue);
    for index in first..first + count {
        let address = place(queue, index);
        driver.describe(base, index, address, 256, WRITE, 0);
        driver.publish(queue, index);
    }
    driver.kick(queue);
}

fn place(queue: usize, index: u16) -> u64 {
    BUFFERS + 0x10_0000 + 0x1_0000 * u64::try_from(queue).unwrap() + 0x100 * u64::from(index)
}

fn filled(driver: &mut Driver, queue: usize) -> Vec<Vec<u8>> {
    let used = driver.used(queue);
    used.iter()
        .map(|(head, length)| {
            let head = u16::try_from(*head).unwrap();
            driver.get(place(queue, head), usize::try_from(*length).unwrap())
        })
        .collect()
}

/// The same, and what was filled is offered again.
fn filled_again(driver: &mut Driver, queue: usize) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for (head, length) in driver.used(queue) {
        let head = u16::try_from(head).unwrap();
        all.push(driver.get(place(queue, head), usize::try_from(length).unwrap()));
        offer(driver, queue, head, 1);
    }
    all
}

/// What Linux does until somebody has the agent's port open.
fn connect(driver: &mut Driver) {
    offer(driver, CONTROL_IN, 0, 16);
    for message in [
        control(0, 0, 1),
        control(0, 3, 1),
        control(1, 3, 1),
        control(1, 6, 1),
    ] {
        driver.request(CONTROL_OUT, &[&message], &[]).unwrap();
    }
}

#[test]
fn ports_are_announced_as_linux_wants_them() {
    let (mut driver, _agent, _heard) = console();
    assert_eq!(driver.read(0x104), 2, "max_nr_ports");
    connect(&mut driver);
    let told = filled(&mut driver, CONTROL_IN);
    let mut name = control(1, 7, 1);
    name.extend(b"bulkhead.agent\0");
    assert_eq!(
        told,
        [
            control(0, 1, 1),
            control(1, 1, 1),
            control(0, 4, 1),
            control(0, 6, 1),
            name,
            control(1, 6, 1),
        ]
    );
}

#[test]
fn words_are_heard() {
    let (mut driver, _agent, heard) = console();
    connect(&mut driver);
    driver
        .request(CONSOLE_OUT, &[b"Kernel ", b"panic"], &[])
        .unwrap();
    // More than anybody says in a line is cut off.
    driver
        .request(CONSOLE_OUT, &[&[b'x'; 100_000]], &[])
        .unwrap();
    let heard = heard.lock().unwrap();
    assert!(heard.starts_with(b"Kernel panicxxx"));
    assert!(heard.len() < 10_000);
}

#[test]
fn bytes_go_both_ways() {
    let (mut driver, mut agent, _heard) = console();
    agent.write_all(b"hello before it is open").unwrap();
    connect(&mut driver);
    offer(&mut driver, AGENT_IN, 0, 4);
    assert_eq!(
        filled(&mut driver, AGENT_IN).concat(),
        b"hello before it is open"
    );
    driver.request(AGENT_OUT, &[b"an", b"swer"], &[]).unwrap();
    let mut text = [0; 6];
    agent.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"answer");
}

#[test]
fn a_slow_host_holds_the_guest_and_nothing_is_lost() {
    let (mut driver, mut agent, _heard) = console();
    connect(&mut driver);
    let mut sent: Vec<u8> = Vec::new();
    let mut heard: Vec<u8> = Vec::new();
    let mut waiting = false;
    for number in 0..200u8 {
        let piece = vec![number; 20_000];
        if !waiting {
            waiting = driver.request(AGENT_OUT, &[&piece], &[]).is_none();
            sent.extend(&piece);
        }
        if waiting {
            let mut bytes = vec![0; 3000];
            match agent.read(&mut bytes) {
                Ok(length) => heard.extend(&bytes[..length]),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            driver.pump();
            waiting = driver.used(AGENT_OUT).is_empty();
        }
    }
    assert!(sent.len() > 300_000, "it never waited");
    loop {
        driver.pump();
        let mut bytes = vec![0; 10_000];
        match agent.read(&mut bytes) {
            Ok(length) => heard.extend(&bytes[..length]),
            Err(_) => break,
        }
    }
    assert!(heard == sent, "{} of {} bytes", heard.len(), sent.len());
}

#[test]
fn a_slow_guest_holds_the_host_and_nothing_is_lost() {
    let (mut driver, mut agent, _heard) = console();
    connect(&mut driver);
    let text: Vec<u8> = (0..20_000u32)
        .map(|n| u8::try_from(n % 253).unwrap())
        .collect();
    agent.write_all(&text).unwrap();
    driver.pump();
    let mut heard: Vec<u8> = Vec::new();
    let mut index = 0;
    while heard.len() < text.len() {
        offer(&mut driver, AGENT_IN, index % 32, 1);
        index += 1;
        heard.extend(filled(&mut driver, AGENT_IN).concat());
    }
    assert!(heard == text);
}

#[test]
fn an_end_is_told() {
    let (mut driver, agent, _heard) = console();
    connect(&mut driver);
    filled(&mut driver, CONTROL_IN);
    offer(&mut driver, AGENT_IN, 0, 2);
    drop(agent);
    driver.pump();
    assert_eq!(filled(&mut driver, CONTROL_IN), [control(1, 6, 0)]);
    assert!(driver.used(AGENT_IN).is_empty());
    // What the guest still has to say is nobody's concern.
    assert!(driver.request(AGENT_OUT, &[b"anybody?"], &[]).is_some());
    assert!(driver.faults().is_empty());
}

#[test]
fn messages_of_any_length_and_order_are_no_harm() {
    let (mut driver, _agent, _heard) = console();
    for length in 0..20 {
        driver
            .request(CONTROL_OUT, &[&vec![0xff; length]], &[])
            .unwrap();
    }
    for event in 0..10 {
        for port in [0, 1, 2, u32::MAX] {
            for value in [0, 1, 0xffff] {
                // Answers that nobody takes are few.
                driver.start(0, 64);
                driver.request(CONTROL_OUT, &[&control(port, event, value)], &[]);
            }
        }
    }
    assert!(driver.faults().is_empty());
}

#[test]
fn messages_in_any_order_are_no_harm_to_one_device() {
    let mut random = StdRng::seed_from_u64(0x0063_6f6e_7472_6f6c);
    let (mut driver, mut agent, _heard) = console();
    let mut open = false;
    offer(&mut driver, CONTROL_IN, 0, 16);
    offer(&mut driver, AGENT_IN, 0, 4);
    let (mut answers, mut carried) = (0, 0);
    for round in 0..4000u32 {
        let port = [0, 1, 1, 2, u32::MAX][random.random_range(0..5)];
        let event = random.random_range(0..9);
        let value = [0, 1, 1, 2, 0xffff][random.random_range(0..5)];
        let mut message = control(port, event, value);
        // Some are too short, and some go on.
        message.resize(random.random_range(6..10), 1);
        driver.request(CONTROL_OUT, &[&message], &[]).unwrap();
        let was_open = open;
        if message.starts_with(&[1, 0, 0, 0, 6, 0]) && message.len() >= 8 {
            open = value != 0;
        }
        let news = filled_again(&mut driver, AGENT_IN).concat();
        assert!(
            open || was_open || news.is_empty(),
            "a closed port hears something"
        );
        carried += news.len();
        for told in filled_again(&mut driver, CONTROL_IN) {
            // Nothing is said of ports that are not there, nor what a device does not say.
            assert!(told.len() >= 8, "{told:?}");
            assert!(told[0] < 2 && told[1..4] == [0; 3], "{told:?}");
            assert!([1, 4, 6, 7].contains(&told[4]), "{told:?}");
            answers += 1;
        }
        if round % 16 == 0 {
            agent.write_all(b"news").unwrap();
            driver.pump();
        }
    }
    assert!(driver.faults().is_empty(), "{:?}", driver.faults());
    assert!(answers > 200 && carried > 500, "{answers}, {carried}");
    // The port is as open as any.
    driver.start(0, 64);
    connect(&mut driver);
    assert_eq!(filled(&mut driver, CONTROL_IN).len(), 6);
    driver.request(AGENT_OUT, &[b"after all"], &[]).unwrap();
    let mut text = [0; 9];
    agent.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"after all");
}

#[test]
fn who_asks_and_never_listens_is_cut_off() {
    let (mut driver, _agent, _heard) = console();
    for _ in 0..100 {
        driver.request(CONTROL_OUT, &[&control(1, 3, 1)], &[]);
    }
    assert_eq!(driver.faults().len(), 1);
    assert!(
        driver.faults()[0].contains("does not take"),
        "{:?}",
        driver.faults()
    );
}

#[test]
fn a_driver_without_ports_is_refused() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut driver = Driver::new(Box::new(Console::new(theirs.into(), None).unwrap()));
    driver.start(1 << 1, 64);
    assert_eq!(driver.faults().len(), 1);
    drop(ours);
}

#[test]
fn a_conversation_goes_on_with_another_socket() {
    let (mut driver, mut agent, _heard) = console();
    connect(&mut driver);
    driver.request(AGENT_OUT, &[b"before"], &[]).unwrap();
    let mut text = [0; 6];
    agent.read_exact(&mut text).unwrap();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let other = Console::new(theirs.into(), Some(Box::new(|_| {}))).unwrap();
    let mut driver = driver.moved_to(Box::new(other)).unwrap();
    driver.request(AGENT_OUT, &[b"after"], &[]).unwrap();
    let mut text = [0; 5];
    ours.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"after");
    ours.write_all(b"and back").unwrap();
    offer(&mut driver, AGENT_IN, 0, 1);
    assert_eq!(filled(&mut driver, AGENT_IN).concat(), b"and back");
}

#[test]
fn another_socket_is_told_where_the_first_had_ended() {
    let (mut driver, agent, _heard) = console();
    connect(&mut driver);
    drop(agent);
    driver.pump();
    offer(&mut driver, AGENT_IN, 0, 1);
    let told = filled(&mut driver, CONTROL_IN);
    assert_eq!(told.last(), Some(&control(1, 6, 0)));
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let other = Console::new(theirs.into(), Some(Box::new(|_| {}))).unwrap();
    let mut driver = driver.moved_to(Box::new(other)).unwrap();
    driver.pump();
    assert_eq!(filled(&mut driver, CONTROL_IN), [control(1, 6, 1)]);
    ours.write_all(b"again").unwrap();
    driver.pump();
    assert_eq!(filled(&mut driver, AGENT_IN), [b"again"]);
}
