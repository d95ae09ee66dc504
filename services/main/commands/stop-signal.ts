const SIGNALS = ["SIGINT", "SIGTERM"] as const;

/** Aborts on the first SIGINT or SIGTERM; a second one of either ends the process at once, as without a handler. */
export function stopSignal(): AbortSignal {
  const stop = new AbortController();
  const end = () => {
    for (const signal of SIGNALS) process.off(signal, end);
    stop.abort();
  };
  for (const signal of SIGNALS) process.on(signal, end);
  return stop.signal;
}
