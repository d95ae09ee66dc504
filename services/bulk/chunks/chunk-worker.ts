import { serve } from "../../sources/serve.js";
import { chunkRequests } from "./chunk-requests.js";

/** The child process that reads files of strangers and makes chunks of them. */
serve(chunkRequests);
