//! Guests of a few bytes: how a machine ends, whatever its guest does. They need KVM, and
//! where there is none they say so: they run where `BULKHEAD_TEST_VM_ENGINE` is `kvm`.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use bulkhead_engine_kvm::KvmEngine;
use bulkhead_machine::{
    Accelerator, BootError, Console, EngineKind, ExitReason, Machine, MachineConfig, MachineExit,
    MachineFiles,
};
use bulkhead_tiny_guest::{InsaneRequest, breaks_a_queue, kernel};

/// One at a time, since threads of this process are counted; `None`, and a word about it,
/// where such guests cannot run.
async fn alone() -> Option<tokio::sync::MutexGuard<'static, ()>> {
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    if std::env::var("BULKHEAD_TEST_VM_ENGINE").is_ok_and(|engine| engine == "kvm") {
        return Some(ALONE.lock().await);
    }
    eprintln!("not run: BULKHEAD_TEST_VM_ENGINE is not 'kvm', so KVM is not expected here");
    None
}

struct Place(tempfile::TempDir);

impl Place {
    fn new(kernel: &[u8]) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        std::fs::write(place.path("vmlinux"), kernel).unwrap();
        std::fs::write(place.path("initramfs"), b"nothing").unwrap();
        place
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn config(&self, vcpus: u32) -> MachineConfig {
        MachineConfig {
            id: "tiny".to_owned(),
            engine: EngineKind::Kvm,
            accelerator: Accelerator::Kvm,
            kernel: self.path("vmlinux"),
            kernel_hz: None,
            initramfs: self.path("initramfs"),
            cmdline_extra: Vec::new(),
            memory_bytes: 96 << 20,
            balloon_bytes: 0,
            vcpus,
            placement: bulkhead_machine::Placement::default(),
            disks: Vec::new(),
            nics: Vec::new(),
            runtime_dir: self.0.path().to_owned(),
            console: Console::Quiet,
        }
    }
}

async fn boot(config: &MachineConfig) -> Result<Box<dyn Machine>, BootError> {
    let (_ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let files = MachineFiles::open(config, OwnedFd::from(theirs), Vec::new()).unwrap();
    // The calls of the test's own thread stay as they are; those of the others do not.
    let machine = KvmEngine.prepare_machine(config, files)?.start()?;
    Ok(Box::new(machine))
}

/// How a guest of these instructions ends.
async fn end(code: &[u8]) -> MachineExit {
    let place = Place::new(&kernel(code));
    let machine = boot(&place.config(1)).await.unwrap();
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, machine.wait()).await.unwrap()
}

/// mov dx, port; mov al, value; out dx, al; and then nothing more.
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee, 0xf4, 0xeb, 0xfd]
}

#[tokio::test]
async fn a_guest_ends_itself_by_its_registers() {
    let Some(_alone) = alone().await else { return };
    let exit = end(&out(0x600, 0x34)).await;
    assert_eq!(exit.reason, ExitReason::PoweredOff, "{exit:?}");
    for reset in [out(0x602, 1), out(0x64, 0xfe)] {
        let exit = end(&reset).await;
        assert_eq!(exit.reason, ExitReason::GuestPanic, "{exit:?}");
        assert!(exit.detail.contains("without a word"), "{exit:?}");
    }
}

#[tokio::test]
async fn a_triple_fault_is_told_with_the_last_words() {
    let Some(_alone) = alone().await else { return };
    // Says "hi", then an interrupt without a table for it.
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    for byte in b"hi\n" {
        code.extend([0xb0, *byte, 0xee]);
    }
    code.extend([0x31, 0xc0, 0x50, 0x50]); // xor eax, eax; push eax; push eax
    code.splice(0..0, [0xbc, 0x00, 0x00, 0x10, 0x00]); // mov esp, 1 MiB
    code.extend([0x0f, 0x01, 0x1c, 0x24]); // lidt [esp]
    code.push(0xcc); // int3
    let exit = end(&code).await;
    assert_eq!(exit.reason, ExitReason::GuestPanic, "{exit:?}");
    assert!(exit.detail.contains("triple-faulted"), "{exit:?}");
    assert!(exit.detail.ends_with("hi"), "{exit:?}");
}

#[tokio::test]
async fn code_outside_of_memory_ends_the_machine_and_not_the_worker() {
    let Some(_alone) = alone().await else { return };
    // mov eax, 0xd0800000; jmp eax: nobody's address.
    let exit = end(&[0xb8, 0x00, 0x00, 0x80, 0xd0, 0xff, 0xe0]).await;
    assert!(
        matches!(
            exit.reason,
            ExitReason::EngineFailed | ExitReason::GuestPanic
        ),
        "{exit:?}"
    );
    assert!(!exit.detail.is_empty());
}

/// All ports and the devices' addresses, written and read without a plan, do not hurt anybody
/// but the guest: it comes to its power-off.
#[tokio::test]
async fn a_guest_may_touch_everything() {
    let Some(_alone) = alone().await else { return };
    let mut code = Vec::new();
    // Ports 0 to 0x5ff and from 0x603 on, but the keyboard controller's command.
    code.extend([0x31, 0xd2]); // xor edx, edx
    let again = code.len();
    code.extend([0x81, 0xfa, 0x00, 0x06, 0x00, 0x00]); // cmp edx, 0x600
    code.extend([0x74, 0x12]); // je next
    code.extend([0x81, 0xfa, 0x02, 0x06, 0x00, 0x00]); // cmp edx, 0x602
    code.extend([0x74, 0x0a]); // je next
    code.extend([0xb0, 0x01, 0xee, 0xec, 0xef, 0xed]); // mov al, 1; out; in; out eax; in eax
    code.extend([0x66, 0xef, 0x66, 0xed]); // out ax; in ax
    // next:
    code.push(0x42); // inc edx
    code.extend([0x81, 0xfa, 0x00, 0x10, 0x00, 0x00]); // cmp edx, 0x1000
    let back = i8::try_from(again).unwrap() - i8::try_from(code.len() + 2).unwrap();
    code.extend([0x75, back.to_ne_bytes()[0]]); // jne again
    // 32 pages of devices, a word at a time: read it, write the address.
    code.extend([0xbf, 0x00, 0x00, 0x00, 0xd0]); // mov edi, 0xd0000000
    let again = code.len();
    code.extend([0x8b, 0x07, 0x89, 0x3f]); // mov eax, [edi]; mov [edi], edi
    code.extend([0x81, 0xc7, 0x94, 0x00, 0x00, 0x00]); // add edi, 0x94
    code.extend([0x81, 0xff, 0x00, 0x00, 0x02, 0xd0]); // cmp edi, 0xd0020000
    let back = i8::try_from(again).unwrap() - i8::try_from(code.len() + 2).unwrap();
    code.extend([0x72, back.to_ne_bytes()[0]]); // jb again
    code.extend(out(0x600, 0x34));
    let exit = end(&code).await;
    assert_eq!(exit.reason, ExitReason::PoweredOff, "{exit:?}");
}

/// What a sane device makes of insane requests is the end of this one machine.
#[tokio::test]
async fn a_guest_that_breaks_a_queue_ends_its_machine_which_says_so() {
    let Some(_alone) = alone().await else { return };
    for request in [
        InsaneRequest::Outside,
        InsaneRequest::Circle,
        InsaneRequest::TooMany,
    ] {
        let exit = end(&breaks_a_queue(request)).await;
        assert_eq!(exit.reason, ExitReason::EngineFailed, "{exit:?}");
        let words = "broke the protocol of its entropy device";
        assert!(exit.detail.contains(words), "{exit:?}");
        eprintln!("{}", exit.detail);
    }
}

#[tokio::test]
async fn cpus_stand_run_on_and_are_killed() {
    let Some(_alone) = alone().await else { return };
    let place = Place::new(&kernel(&[0xeb, 0xfe])); // jmp itself
    let machine = boot(&place.config(3)).await.unwrap();
    for _ in 0..20 {
        machine.pause().await.unwrap();
        machine.pause().await.unwrap();
        machine.resume().await.unwrap();
    }
    machine.kill();
    machine.kill();
    let exit = machine.wait().await;
    assert_eq!(exit.reason, ExitReason::Killed, "{exit:?}");
    assert!(machine.pause().await.is_err());
    assert!(machine.resume().await.is_err());
    assert_eq!(machine.wait().await, exit);

    // One that stands can be killed too.
    let machine = boot(&place.config(2)).await.unwrap();
    machine.pause().await.unwrap();
    machine.kill();
    assert_eq!(machine.wait().await.reason, ExitReason::Killed);
    drop(machine);
    assert_eq!(threads_named("vcpu"), 0);
}

fn threads_named(prefix: &str) -> usize {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter(|task| {
            let comm = task.as_ref().unwrap().path().join("comm");
            std::fs::read_to_string(comm).is_ok_and(|comm| comm.starts_with(prefix))
        })
        .count()
}

#[tokio::test]
async fn what_cannot_boot_says_why() {
    let Some(_alone) = alone().await else { return };
    let refusal = async |place: &Place, config: &MachineConfig| {
        let error = boot(config).await.err().unwrap();
        let text = error.to_string();
        assert!(matches!(error, BootError::InvalidConfig(_)), "{text}");
        assert!(threads_named("vcpu") == 0 && place.0.path().exists());
        text
    };
    let whole = kernel(&[0xf4]);
    let place = Place::new(whole.get(..whole.len() - 1).unwrap());
    let text = refusal(&place, &place.config(1)).await;
    assert!(
        text.contains("vmlinux") && text.contains("cut off"),
        "{text}"
    );

    let mut bzimage = vec![0; 4096];
    bzimage[0x202..0x206].copy_from_slice(b"HdrS");
    let place = Place::new(&bzimage);
    let text = refusal(&place, &place.config(1)).await;
    assert!(text.contains("bzImage"), "{text}");

    let place = Place::new(&whole);
    std::fs::write(place.path("initramfs"), b"").unwrap();
    let text = refusal(&place, &place.config(1)).await;
    assert!(
        text.contains("initramfs") && text.contains("empty"),
        "{text}"
    );

    grow(&place.path("initramfs"), 80 << 20);
    let text = refusal(&place, &place.config(1)).await;
    assert!(text.contains("96 MiB of memory are too little"), "{text}");

    let place = Place::new(&whole);
    let mut config = place.config(1);
    config.cmdline_extra = vec!["x".repeat(3000)];
    let text = refusal(&place, &config).await;
    assert!(text.contains("command line"), "{text}");
    config.cmdline_extra.clear();
    config.vcpus = 255;
    let text = refusal(&place, &config).await;
    assert!(text.contains("not 255"), "{text}");
}

fn grow(path: &Path, bytes: u64) {
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(b"x").unwrap();
    file.set_len(bytes).unwrap();
}
