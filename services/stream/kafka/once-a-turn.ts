/** Runs after this turn of the event loop, once for all that ask for it meanwhile. */
export function onceATurn(run: () => void): () => void {
  let scheduled = false;
  return () => {
    if (scheduled) return;
    scheduled = true;
    setImmediate(() => {
      scheduled = false;
      run();
    });
  };
}
