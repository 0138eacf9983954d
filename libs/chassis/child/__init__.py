"""One child process: `process` is the parent's side of it, `channel` the child's own."""
