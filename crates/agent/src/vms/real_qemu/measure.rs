//! How fast a real guest writes to its memory.

use super::*;

/// Writes to every page between 1 and 31 MiB, round after round, each time something else:
///
/// ```text
///        cli; xor ax,ax; mov ds,ax; lgdt [gdtr]; mov eax,cr0; or al,1; mov cr0,eax
///        mov bx,8; mov ds,bx; and al,0xfe; mov cr0,eax        ; ds now reaches all memory
/// round: inc ecx; mov edi,0x100000
/// page:  mov [edi],ecx; add edi,0x1000; cmp edi,0x1f00000; jb page; jmp round
/// gdtr:  dw 15; dd gdt
/// gdt:   dq 0, 0x00cf92000000ffff
/// ```
const WRITES_EVERYWHERE: &[u8] = &[
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x66, 0x0f, 0x01, 0x16, 0x3b, 0x7c, 0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22,
    0xc0, //
    0xbb, 0x08, 0x00, 0x8e, 0xdb, 0x24, 0xfe, 0x0f, 0x22, 0xc0, //
    0x66, 0x41, 0x66, 0xbf, 0x00, 0x00, 0x10, 0x00, //
    0x67, 0x66, 0x89, 0x0f, 0x66, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, 0x66, 0x81, 0xff, 0x00, 0x00, 0xf0, 0x01, 0x72,
    0xec, //
    0xeb, 0xe2, 0x0f, 0x00, 0x41, 0x7c, 0x00, 0x00, //
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0x00, 0x00, 0x00, 0x92, 0xcf, 0x00,
];

impl LabHost {
    async fn measure(&self, generation: u64, span: Millis) -> Answer {
        let generation = Generation(generation);
        self.tell(Command::MeasureDirtyRate { vm: self.vm.clone(), generation, span }).await
    }

    fn dirty_rate(&self) -> Option<Bytes> {
        self.agent().measurable().into_iter().find(|one| one.vm == self.vm)?.dirty_rate
    }
}

#[tokio::test]
async fn a_running_guest_is_measured_unasked_in_its_turn() {
    let lab = Lab::new(WRITES_EVERYWHERE);
    let mut host = lab.host("h1");
    host.limits = "dirty_rate_every_ms = 1000";
    host.start_agent().await;
    // As while another vm is measured.
    let turn = Arc::clone(&host.agent().shared.measuring).acquire_owned().await.unwrap();
    assert_eq!(host.run(1).await, Ok(CommandOutcome::Done));
    // One that is asked for waits for no turn.
    assert_eq!(host.measure(1, Millis::secs(4)).await, Ok(CommandOutcome::Done));
    assert_eq!(host.dirty_rate(), None);
    until("it is measured as asked", || host.dirty_rate().is_some()).await;
    drop(turn);
    // The guest may have been on its way through the firmware then.
    until("it is measured again and writes", || host.dirty_rate() > Some(Bytes::ZERO)).await;
}

#[tokio::test]
async fn a_guest_that_writes_is_measured_when_asked_while_its_vm_obeys_other_commands() {
    let lab = Lab::new(WRITES_EVERYWHERE);
    let mut host = lab.host("h1");
    host.start_agent().await;
    assert_eq!(host.run(1).await, Ok(CommandOutcome::Done));
    assert_eq!(host.dirty_rate(), None, "nobody asked");
    // The guest may still be on its way through the firmware.
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert_eq!(host.measure(1, Millis::secs(1)).await, Ok(CommandOutcome::Done));
        until("it is measured", || host.dirty_rate().is_some()).await;
        if host.dirty_rate() > Some(Bytes::ZERO) {
            break;
        }
        assert!(Instant::now() < deadline, "a guest that writes everywhere is not seen to write");
    }

    // It goes on for longer than a test waits for an answer.
    assert_eq!(host.measure(1, Millis::secs(60)).await, Ok(CommandOutcome::Done));
    assert_eq!(host.run(2).await, Ok(CommandOutcome::Done));
    assert_eq!(host.dirty_rate(), None, "the older result is withdrawn");
    assert_eq!(host.measure(1, Millis::secs(1)).await, Err(CommandRefusal::StaleGeneration { known: Generation(2) }));
    assert_eq!(host.measure(2, Millis::secs(1)).await, Ok(CommandOutcome::Done), "the one under way answers it, too");

    let stop = Command::Stop { vm: lab.vm.clone(), generation: Generation(2), grace: Millis(50) };
    assert_eq!(host.tell(stop).await, Ok(CommandOutcome::Done));
    host.until_state(&VmState::Stopped).await;
    let refused = host.measure(2, Millis::secs(1)).await;
    assert_eq!(refused, Err(CommandRefusal::WrongState { state: "stopped".to_owned() }));
    assert_eq!(host.run(3).await, Ok(CommandOutcome::Done));
    assert_eq!(host.dirty_rate(), None, "this process was not measured");
}
