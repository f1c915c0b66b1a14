//! The dispatcher: sockets and bells become events, the pool decides, its actions become writes and answers.

pub mod slot;
