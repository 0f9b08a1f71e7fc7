//! How much memory the process uses, by the allocator's own account.
//!
//! What the kernel says is resident would be no measure to act upon: the allocator gives back what was freed a second later and
//! in part, pages in swap do not count, and those of files do. Nor is what the allocator calls committed, which never goes down on Linux
//! (it counts what it may use, and after a purge it may still use that). So each thread counts what it is handed and gives back.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use libmimalloc_sys::{mi_malloc, mi_realloc, mi_zalloc};
use mimalloc::MiMalloc;

/// Threads that count in a place of their own. Those beyond it, which only a process has that started many short ones, share the
/// first place.
const PLACES: usize = 1024;

/// Bytes handed out less those given back, on a cache line of its own.
#[repr(align(64))]
struct Place(AtomicI64);

static COUNTED: [Place; PLACES] = [const { Place(AtomicI64::new(0)) }; PLACES];

/// Places that are taken.
static TAKEN: AtomicUsize = AtomicUsize::new(1);

/// Of a thread that has not looked for a place.
const NONE: usize = usize::MAX;

/// The place that threads share.
const SHARED: usize = 0;

thread_local! {
    /// Has no destructor and needs no initialisation, so that it may be used while the thread begins and ends.
    static OWN: Cell<usize> = const { Cell::new(NONE) };
}

/// The allocator of the process: mimalloc, and a count of what it has handed out.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allocator;

#[inline]
fn count(bytes: i64) {
    // A thread without its locals counts with others.
    let place = OWN.try_with(Cell::get).unwrap_or(SHARED);
    if place.wrapping_sub(1) < PLACES - 1 {
        // Nobody else writes here, so that this need not be one step.
        let counted = &COUNTED[place].0;
        counted.store(counted.load(Ordering::Relaxed).wrapping_add(bytes), Ordering::Relaxed);
    } else {
        count_first(place, bytes);
    }
}

#[cold]
fn count_first(place: usize, bytes: i64) {
    if place == NONE {
        let next = TAKEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| (next < PLACES).then_some(next + 1));
        // It may be gone already; then this one is shared.
        let _ = OWN.try_with(|own| own.set(next.unwrap_or(SHARED)));
    }
    COUNTED[SHARED].0.fetch_add(bytes, Ordering::Relaxed);
}

/// Whether mimalloc aligns so without being asked: a block of 16 bytes or more stands at a multiple of 16, a smaller one at a multiple
/// of 8. Asked for an alignment, it takes a slower way, and for most sizes above 1 KiB a larger block.
#[inline]
const fn is_natural(align: usize, size: usize) -> bool {
    align <= 16 && align <= size
}

// SAFETY: every call goes to mimalloc as it came, or without the alignment where every block has it, and what it returns goes back as
// it is; counting allocates nothing and cannot unwind.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        if is_natural(layout.align(), layout.size()) {
            // SAFETY: it may be asked for any size.
            return unsafe { mi_malloc(layout.size()).cast() };
        }
        // SAFETY: the caller's promise is the one that is asked for.
        unsafe { MiMalloc.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        if is_natural(layout.align(), layout.size()) {
            // SAFETY: it may be asked for any size.
            return unsafe { mi_zalloc(layout.size()).cast() };
        }
        // SAFETY: as above.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: as above; all of mimalloc's blocks are freed in the same way.
        unsafe { MiMalloc.dealloc(pointer, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as i64 - layout.size() as i64);
        if is_natural(layout.align(), size) {
            // SAFETY: the pointer is one of mimalloc's, as the caller promises.
            return unsafe { mi_realloc(pointer.cast(), size).cast() };
        }
        // SAFETY: as above.
        unsafe { MiMalloc.realloc(pointer, layout, size) }
    }
}

/// Bytes that the allocator has handed out now. `None`: the process has another allocator.
#[must_use]
pub fn handed_out_bytes() -> Option<u64> {
    // Threads count while this adds up, each a little more or less.
    let sum = COUNTED.iter().map(|place| place.0.load(Ordering::Relaxed)).fold(0i64, i64::wrapping_add);
    u64::try_from(sum).ok().filter(|&bytes| bytes > 0)
}

/// What [`handed_out_bytes`] says, else what is resident.
#[must_use]
pub fn used_bytes() -> Option<u64> {
    handed_out_bytes().or_else(resident_bytes)
}

fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is not asked for must be so: of every size class, of many blocks in a row, and after growing.
    #[test]
    fn blocks_are_aligned_without_being_asked() {
        for size in (1..=1024).chain([1500, 4100, 70_000, 1_000_000]) {
            let aligns = [1, 2, 4, 8, 16].into_iter().filter(|&align| is_natural(align, size));
            let align = aligns.max().unwrap();
            for zeroed in [false, true] {
                // SAFETY: each pointer is grown and freed once, by the allocator that it came from.
                unsafe {
                    let allocated: Vec<_> =
                        (0..9).map(|_| if zeroed { mi_zalloc(size) } else { mi_malloc(size) }).collect();
                    for pointer in allocated {
                        assert_eq!(pointer as usize % align, 0, "{size} bytes");
                        let grown = mi_realloc(pointer, size + size / 2 + 1);
                        assert_eq!(grown as usize % align, 0, "grown from {size} bytes");
                        libmimalloc_sys::mi_free(grown);
                    }
                }
            }
        }
        assert!(!is_natural(32, 64) && !is_natural(16, 8), "these are asked for");
    }

    /// The tests have the system's allocator, so nothing else is counted here.
    #[test]
    fn what_one_thread_allocates_and_another_frees_adds_up_to_nothing() {
        const LARGE: i64 = 10 << 20;
        let layout = Layout::from_size_align(LARGE as usize, 8).unwrap();
        let grown = Layout::from_size_align(2 * LARGE as usize, 8).unwrap();
        let counted = || COUNTED.iter().map(|place| place.0.load(Ordering::Relaxed)).sum::<i64>();
        assert_eq!((counted(), handed_out_bytes()), (0, None));
        let allocate = move || {
            // SAFETY: the layouts are not empty, and each pointer is used with the layout it came by.
            unsafe { Allocator.realloc(Allocator.alloc(layout), layout, grown.size()) as usize }
        };
        let pointer = std::thread::spawn(allocate).join().unwrap();
        assert_eq!(handed_out_bytes(), Some(2 * LARGE as u64), "its thread is gone");
        // SAFETY: as above.
        unsafe { Allocator.dealloc(pointer as *mut u8, grown) };
        assert_eq!((counted(), handed_out_bytes()), (0, None));
    }
}
