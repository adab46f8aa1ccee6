//! Instructions of eBPF (RFC 9669), put together by hand: what we have the kernel run is short, and is read here as it runs.

/// A register: 0 answers, 1 to 5 are arguments and lost by calls, 6 to 9 are kept, 10 is the end of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reg(pub(crate) u8);

pub(crate) const R0: Reg = Reg(0);
pub(crate) const R1: Reg = Reg(1);
pub(crate) const R2: Reg = Reg(2);
pub(crate) const R3: Reg = Reg(3);
pub(crate) const R4: Reg = Reg(4);
pub(crate) const R6: Reg = Reg(6);
pub(crate) const R7: Reg = Reg(7);
pub(crate) const R8: Reg = Reg(8);
pub(crate) const R9: Reg = Reg(9);
pub(crate) const STACK: Reg = Reg(10);

/// How much is loaded or stored (RFC 9669 §5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    Byte = 0x10,
    Half = 0x08,
    Word = 0x00,
}

/// When a jump is taken (RFC 9669 §4.3); numbers have no sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Equal = 0x10,
    Greater = 0x20,
    NotEqual = 0x50,
    AtMost = 0xb0,
}

/// Helper functions of the kernel, by number (`enum bpf_func_id`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Helper {
    MapLookup = 1,
    Redirect = 23,
    ChangeProtocol = 31,
    ChecksumUpdate = 40,
    ChangeHead = 43,
    RedirectNeigh = 152,
    RedirectPeer = 155,
}

/// A place to jump to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label(usize);

/// A program being written.
#[derive(Debug, Default)]
pub(crate) struct Asm {
    code: Vec<u64>,
    labels: Vec<Option<usize>>,
    /// Jumps, and where each goes.
    jumps: Vec<(usize, Label)>,
}

impl Asm {
    fn push(&mut self, code: u8, to: Reg, from: Reg, offset: i16, immediate: i32) {
        let [low, high] = offset.to_le_bytes();
        let [a, b, c, d] = immediate.to_le_bytes();
        // Fields of an instruction are in the machine's order, and so is this number (`struct bpf_insn`).
        self.code.push(u64::from_le_bytes([code, to.0 | from.0 << 4, low, high, a, b, c, d]));
    }

    /// `to = from`.
    pub(crate) fn copy(&mut self, to: Reg, from: Reg) {
        self.push(0xbf, to, from, 0, 0);
    }

    /// `to = number`.
    pub(crate) fn set(&mut self, to: Reg, number: i32) {
        self.push(0xb7, to, R0, 0, number);
    }

    /// `to += number`.
    pub(crate) fn add(&mut self, to: Reg, number: i32) {
        self.push(0x07, to, R0, 0, number);
    }

    /// `to += from`.
    pub(crate) fn sum(&mut self, to: Reg, from: Reg) {
        self.push(0x0f, to, from, 0, 0);
    }

    /// `to &= number`.
    pub(crate) fn and(&mut self, to: Reg, number: i32) {
        self.push(0x57, to, R0, 0, number);
    }

    /// `to |= number`.
    pub(crate) fn or(&mut self, to: Reg, number: i32) {
        self.push(0x47, to, R0, 0, number);
    }

    /// `to ^= number`.
    pub(crate) fn xor(&mut self, to: Reg, number: i32) {
        self.push(0xa7, to, R0, 0, number);
    }

    /// `to <<= bits`.
    pub(crate) fn shift_left(&mut self, to: Reg, bits: i32) {
        self.push(0x67, to, R0, 0, bits);
    }

    /// The lower `bits` (16 or 32) of `to` from the machine's order into that of the network, or back.
    pub(crate) fn big_endian(&mut self, to: Reg, bits: i32) {
        self.push(0xdc, to, R0, 0, bits);
    }

    /// `to >>= bits`.
    pub(crate) fn shift_right(&mut self, to: Reg, bits: i32) {
        self.push(0x77, to, R0, 0, bits);
    }

    /// `to = *(from + offset)`.
    pub(crate) fn load(&mut self, size: Size, to: Reg, from: Reg, offset: i16) {
        self.push(0x61 | size as u8, to, from, offset, 0);
    }

    /// `*(to + offset) = from`.
    pub(crate) fn store(&mut self, size: Size, to: Reg, offset: i16, from: Reg) {
        self.push(0x63 | size as u8, to, from, offset, 0);
    }

    /// `*(to + offset) = number`.
    pub(crate) fn store_number(&mut self, size: Size, to: Reg, offset: i16, number: i32) {
        self.push(0x62 | size as u8, to, R0, offset, number);
    }

    /// `*(to + offset) += from`, eight bytes at once for all processors.
    pub(crate) fn count(&mut self, to: Reg, offset: i16, from: Reg) {
        self.push(0xdb, to, from, offset, 0);
    }

    /// `to = map`.
    pub(crate) fn map(&mut self, to: Reg, map: i32) {
        const BY_FD: Reg = Reg(1);
        self.push(0x18, to, BY_FD, 0, map);
        self.code.push(0);
    }

    pub(crate) fn call(&mut self, helper: Helper) {
        self.push(0x85, R0, R0, 0, helper as i32);
    }

    /// Ends with what register 0 holds.
    pub(crate) fn exit(&mut self) {
        self.push(0x95, R0, R0, 0, 0);
    }

    /// A place that is yet to come.
    pub(crate) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Here is that place.
    pub(crate) fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    /// Goes on there.
    pub(crate) fn jump(&mut self, there: Label) {
        self.jumps.push((self.code.len(), there));
        self.push(0x05, R0, R0, 0, 0);
    }

    /// Goes on there if `left` is so beside a number.
    pub(crate) fn jump_if(&mut self, left: Reg, when: When, number: i32, there: Label) {
        self.jumps.push((self.code.len(), there));
        self.push(0x05 | when as u8, left, R0, 0, number);
    }

    /// Goes on there if `left` is so beside `right`.
    pub(crate) fn jump_if_reg(&mut self, left: Reg, when: When, right: Reg, there: Label) {
        self.jumps.push((self.code.len(), there));
        self.push(0x0d | when as u8, left, right, 0, 0);
    }

    /// The program, as the kernel takes it.
    ///
    /// # Panics
    /// If a label was given no place, or one too far away.
    pub(crate) fn finish(mut self) -> Vec<u64> {
        for (from, label) in self.jumps {
            let to = self.labels[label.0].expect("every label has a place");
            let offset = i16::try_from(to as isize - from as isize - 1).expect("programs are short");
            let mut bytes = self.code[from].to_le_bytes();
            bytes[2..4].copy_from_slice(&offset.to_le_bytes());
            self.code[from] = u64::from_le_bytes(bytes);
        }
        self.code
    }
}
