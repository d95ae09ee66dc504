/**
 * In a child process: tells the parent something. Resolves once that is done, or need not be: the channel may break
 * meanwhile, and a parent that is gone needs no message any more. Never rejects; without a callback a broken channel is an
 * error that nobody catches.
 */
export const tellParent = (message: object): Promise<void> =>
  new Promise((resolve) => {
    if (process.send === undefined) resolve();
    else process.send(message, () => resolve());
  });
