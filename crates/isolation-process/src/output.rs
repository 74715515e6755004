//! A process's output, which ends with the process: children that it leaves behind may
//! hold the pipe for ever, and nobody is to wait for them.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

use crate::reaper::Child;

/// How much is read after the exit at the most, bytes: no pipe holds more (the default of
/// `fs.pipe-max-size`), so the rest was written later, by others.
const REMAINDER: usize = 1 << 20;

/// Reads `source` until it ends, or until it is empty after the process has exited.
pub struct UntilExit<S> {
    source: S,
    exit: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    remainder: usize,
}

impl<S> UntilExit<S> {
    /// The output of `child`. Reading `source` must not block.
    pub fn new(source: S, child: Child) -> Self {
        Self {
            source,
            exit: Some(Box::pin(async move {
                child.wait().await;
            })),
            remainder: REMAINDER,
        }
    }
}

impl<S: AsyncRead + AsFd + Unpin> AsyncRead for UntilExit<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(exit) = &mut self.exit {
            let exited = exit.as_mut().poll(context).is_ready();
            if !exited {
                return Pin::new(&mut self.source).poll_read(context, buffer);
            }
            self.exit = None;
        }
        if self.remainder == 0 {
            return Poll::Ready(Ok(()));
        }
        let unfilled = buffer.initialize_unfilled();
        match rustix::io::read(self.source.as_fd(), unfilled) {
            Ok(count) => {
                buffer.advance(count);
                self.remainder = self.remainder.saturating_sub(count);
                Poll::Ready(Ok(()))
            }
            // Empty, or a terminal whose other side is closed.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::IO) => Poll::Ready(Ok(())),
            Err(rustix::io::Errno::INTR) => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}
