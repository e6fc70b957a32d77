// Prints, as JSON, the embeddings of texts from each client and the error for half of an emoji.
// Arguments: base URL, model name, texts.
import { OpenAIEmbeddings } from "@langchain/openai";
import OpenAI from "openai";

const [baseURL, model, ...texts] = process.argv.slice(2);
const apiKey = "unused";

const openai = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const halfOfAnEmoji = "가🎉".slice(0, 2); // an argument of a command cannot have it
const refusal = await openai.embeddings.create({ model, input: halfOfAnEmoji }).catch((error) => error);
const [asBase64, asFloat] = await Promise.all(
  [{}, { encoding_format: "float" }].map((format) => openai.embeddings.create({ model, input: texts, ...format })),
);
// By default, LangChain replaces line breaks with spaces.
const langchain = new OpenAIEmbeddings({ model, apiKey, configuration: { baseURL }, stripNewLines: false });
console.log(
  JSON.stringify({
    refusal: { status: refusal.status, message: refusal.message },
    embeddings: {
      openai: asBase64.data.map((item) => item.embedding),
      openaiAsFloat: asFloat.data.map((item) => item.embedding),
      langchain: await langchain.embedDocuments(texts),
      langchainQueries: await Promise.all(texts.map((text) => langchain.embedQuery(text))),
    },
  }),
);
