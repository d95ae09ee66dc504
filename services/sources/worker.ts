import { readRequests } from "./read-requests.js";
import { serve } from "./serve.js";

/** The child process in which files of strangers are read. */
serve(readRequests);
